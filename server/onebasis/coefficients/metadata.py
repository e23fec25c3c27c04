"""What clients note beside a version of a task. Bounds as of OpenAI's `metadata`."""

from collections.abc import Mapping
from typing import Final

from onebasis.core.errors import InvalidParameter

_MAX_ENTRIES: Final = 16
_MAX_NAME_CHARS: Final = 64
_MAX_VALUE_CHARS: Final = 512


def check_metadata(param: str, found: object) -> Mapping[str, str]:
    """`found` if it is a table of texts within the bounds.

    Raises:
        InvalidParameter: for `param`, with what is allowed.
    """
    if not isinstance(found, dict) or len(found) > _MAX_ENTRIES or not all(map(_is_entry, found.items())):
        raise InvalidParameter(
            param,
            f"needs a JSON object of at most {_MAX_ENTRIES} texts, names of 1 to {_MAX_NAME_CHARS} characters, "
            f"values of at most {_MAX_VALUE_CHARS}",
        )
    return found


def _is_entry(entry: tuple[object, object]) -> bool:
    name, value = entry
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    return 0 < len(name) <= _MAX_NAME_CHARS and len(value) <= _MAX_VALUE_CHARS and _is_text(name + value)


def _is_text(text: str) -> bool:
    """No half of a character that is written as two."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
