"""Which folders a fleet is in, and what its adapters weigh."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from onebasis.coefficients.container import unique_names
from onebasis.core.errors import InvalidAdapter, InvalidData

_CONFIG: Final = "adapter_config.json"


def adapter_folders(given: Sequence[Path]) -> list[Path]:
    """Each given folder that is an adapter, and the adapters in each that is a folder of them, by name.

    Raises:
        InvalidAdapter: there is no adapter in one of them.
    """
    found: list[Path] = []
    for folder in given:
        inside = (
            [folder]
            if (folder / _CONFIG).is_file()
            else sorted(config.parent for config in folder.glob(f"*/{_CONFIG}"))
        )
        if not inside:
            raise InvalidAdapter(folder, f"no {_CONFIG} in it or in its folders; give folders that PEFT has saved")
        found += inside
    return found


def read_weights(path: Path, names: Collection[str]) -> Mapping[str, float]:
    """A JSON object of weights by adapter's name; who is not in it weighs 1.

    Raises:
        InvalidData: no such object, a weight that is not a positive number, or a name that no adapter has.
        OSError: the file can't be read.
    """
    try:
        weights = json.loads(path.read_text(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"weights {path}: needs a JSON object of weights by adapter's name ({error})") from error
    if not isinstance(weights, dict):
        raise InvalidData(f"weights {path}: needs a JSON object of weights by adapter's name")
    for name, weight in weights.items():
        if name not in names:
            raise InvalidData(f"weights {path}: no adapter is called {name!r}; they are {', '.join(sorted(names))}")
        if type(weight) not in (int, float) or not (0 < weight < math.inf):
            raise InvalidData(f"weights {path}: {name!r} needs a number above 0, found {weight!r}")
    return {name: float(weight) for name, weight in weights.items()}
