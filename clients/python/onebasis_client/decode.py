"""From parsed JSON to frozen dataclasses, whose annotations are the contract. Fields that they do not name are left."""

import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast

from onebasis_client.errors import UnexpectedReply

T = TypeVar("T")


def decode(kind: type[T], value: object, where: str = "answer") -> T:
    """`value` as `kind`: a dataclass, str, int, float, bool, Any, tuple[X, ...], Mapping[str, X], or a union with None.

    A field that is absent takes its default. Nothing is converted, but a whole number may stand for a float.

    Raises:
        UnexpectedReply: names the place, what it needs and what was found.
    """
    return cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _decode(inner, value, where)
    if origin is tuple:
        items = _checked(list, value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(items))
    if origin is Mapping:
        entries = _checked(dict, value, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if is_dataclass(kind):
        return _decode_object(cast(type, kind), _checked(dict, value, where), where)
    if kind is float and type(value) is int:
        return float(value)
    return _checked(kind, value, where)


def _decode_object(kind: type, value: Mapping[str, object], where: str) -> Any:
    given = {}
    for name, (field_kind, is_required) in _fields_of(kind).items():
        if name in value:
            given[name] = _decode(field_kind, value[name], f"{where}.{name}")
        elif is_required:
            raise UnexpectedReply(f"{where}.{name} is missing; is this a onebasis server, and of a like version?")
    return kind(**given)


@cache
def _fields_of(kind: Any) -> Mapping[str, tuple[Any, bool]]:
    """Name -> (annotation, whether it is required)."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(kind)
    }


def _checked(kind: Any, value: object, where: str) -> Any:
    if type(value) is not kind:  # not isinstance: True is no number
        raise UnexpectedReply(f"{where}: needs {kind.__name__}, found {reprlib.repr(value)}")
    return value
