"""Values that hold for the modules whose path matches: the first match in the file's order wins, as in PEFT."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onebasis.core.errors import InvalidAdapter

Value = TypeVar("Value")
Patterns = tuple[tuple[re.Pattern[str], Value], ...]


def compile_patterns(
    folder: Path, field: str, found: object, check: Callable[[Path, str, object], Value]
) -> Patterns[Value]:
    """Patterns in the order of the file.

    Raises:
        InvalidAdapter: no object, a key that is no regular expression, or a value that `check` refuses.
    """
    if found is None:
        return ()
    if not isinstance(found, dict):
        raise InvalidAdapter(folder, f"{field} needs an object of patterns, found {found!r:.100}")
    patterns: list[tuple[re.Pattern[str], Value]] = []
    for key, value in found.items():
        try:
            pattern = re.compile(rf"(.*\.)?({key})$")
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidAdapter(folder, f"{field}: {key!r:.100} is no regular expression ({error})") from error
        patterns.append((pattern, check(folder, f"{field}[{key!r:.100}]", value)))
    return tuple(patterns)


def value_for(
    folder: Path, field: str, patterns: Patterns[Value], *, saved_path: str, model_path: str, default: Value
) -> Value:
    """The value for one module, under the path it has in the file and under the one it has in the model.

    The two differ when a wrapper's prefix was saved, or left out; a pattern may be written for either.

    Raises:
        InvalidAdapter: both paths match, with different values.
    """
    by_saved = _first(patterns, saved_path)
    by_model = _first(patterns, model_path)
    if by_saved is not None and by_model is not None and by_saved != by_model:
        raise InvalidAdapter(
            folder,
            f"{field} gives {by_saved} for {saved_path!r:.200} as the file spells it and {by_model} for "
            f"{model_path!r} as the model does; spell the pattern so that both agree",
        )
    return next((value for value in (by_saved, by_model) if value is not None), default)


def _first(patterns: Patterns[Value], path: str) -> Value | None:
    return next((value for pattern, value in patterns if pattern.match(path)), None)
