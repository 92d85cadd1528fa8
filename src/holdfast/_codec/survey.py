"""Looks over a value before msgspec encodes it, for what msgspec would lose without a word.

Three things: fields of dataclasses and attrs classes that begin with an underscore, which msgspec leaves out;
keys of one dict that are the same text in JSON, such as 1 and "1"; and nesting so deep that another process
could not read it. Lists and dicts are looked into at the speed of `set(map(type, …))`. An object only where
the annotations of its class leave open what it may hold: what to look at is decided once per class.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import UnionType
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from holdfast._codec import models

__all__ = ["MOST_NESTED", "SameKeys", "whole"]

MOST_NESTED: Final = 150
"""Values in values: what every Python, and pydantic, can read back from any depth of its own stack."""

_ATOMS: Final = frozenset(
    {str, int, float, bool, type(None), bytes, bytearray, memoryview, Decimal, UUID, msgspec.Raw}
    | {datetime, date, time, timedelta}
)
_TEXTS: Final = frozenset({str})
_SEQUENCES: Final = (list, tuple, set, frozenset)
_MOST_CLASSES: Final = 4096


class SameKeys(ValueError):
    """Two keys of a dict are the same in JSON."""


class _Plan(NamedTuple):
    """What to do with the instances of a class: which fields to look into, and whether any is left out."""

    names: tuple[str, ...]
    visit: tuple[str, ...]
    hides: bool


_clear: Final[set[type]] = set(_ATOMS)
"""Classes of which nothing needs to be looked at."""
_plans: Final[dict[type, _Plan]] = {}


def whole(value: Any) -> Any:  # noqa: ANN401
    """The value, or a copy of it in which nothing is missing that msgspec would leave out.

    Raises:
        RecursionError: if it is nested deeper than `MOST_NESTED`, or contains itself.
        SameKeys: if a dict in it has two keys that are one in JSON.
    """
    return value if type(value) in _clear or not _lacks(value, 0) else _copy(value)


def _lacks(value: Any, depth: int) -> bool:  # noqa: ANN401
    """Would msgspec leave something out? Raises what is wrong with it."""
    if depth > MOST_NESTED:
        raise RecursionError
    kind, lacks = type(value), False
    inner: Iterable[Any]
    if kind is dict or isinstance(value, dict):
        if not _all_texts(map(type, value)):
            _check_keys(value)
        inner = value.values()
    elif kind is list or isinstance(value, _SEQUENCES):
        inner = value
    else:
        plan = _plan(kind)
        lacks = plan.hides
        inner = [getattr(value, name, None) for name in plan.visit]
    for part in inner:
        kind = type(part)
        # Most of what there is in JSON is seen to be in order without a call of this function.
        if kind in _clear or (kind is list and _all_clear(map(type, part))):
            continue
        if kind is dict and _all_texts(map(type, part)) and _all_clear(map(type, part.values())):
            continue
        if _lacks(part, depth + 1):
            lacks = True
    return lacks


_all_clear: Final = _clear.issuperset
_all_texts: Final = _TEXTS.issuperset


def _copy(value: Any) -> Any:  # noqa: ANN401
    """The value with what it lacks: as dicts, where there are classes that hide something."""
    if type(value) in _clear:
        return value
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, _SEQUENCES):
        return list(map(_copy, value))
    plan = _plan(type(value))
    changed = {name: _copy(getattr(value, name)) for name in plan.visit if hasattr(value, name)}
    if isinstance(value, msgspec.Struct):
        return _with(value, changed)
    return {name: getattr(value, name) for name in plan.names if hasattr(value, name)} | changed


def _with(value: msgspec.Struct, changed: dict[str, Any]) -> msgspec.Struct:
    """A copy of a Struct, which keeps its tag and the names that its fields have in JSON."""
    copied = copy.copy(value)
    for name, part in changed.items():
        msgspec.structs.force_setattr(copied, name, part)
    return copied


def _check_keys(value: dict[Any, Any]) -> None:
    kinds = set(map(type, value))
    mixed = len(value) > 1 and (len(kinds) > 1 or not kinds <= _ATOMS)
    if mixed and len(set(map(_as_text, value))) < len(value):
        raise SameKeys


def _as_text(key: object) -> object:
    """What a key is in JSON; itself if it cannot be a key, which is said elsewhere."""
    if isinstance(key, Enum):
        key = key.value
    try:
        return msgspec.json.encode({key: None})
    except Exception:  # lone surrogates, classes of which only the encoder's hook knows
        return str.__str__(key) if isinstance(key, str) else key


def _plan(cls: type) -> _Plan:
    plan = _plans.get(cls)
    if plan is None:
        plan = _make_plan(cls)
        if len(_plans) + len(_clear) < _MOST_CLASSES:
            if plan.hides or plan.visit:
                _plans[cls] = plan
            else:
                _clear.add(cls)
    return plan


def _make_plan(cls: type) -> _Plan:
    """Of an enum, a model of pydantic's, and what cannot be encoded at all, nothing is looked at."""
    names = tuple(_field_names(cls))
    hides = not issubclass(cls, msgspec.Struct) and any(name.startswith("_") for name in names)
    hints = _hints(cls) if names else {}
    return _Plan(names, tuple(name for name in names if _is_open(hints.get(name, Any), (cls,))), hides)


def _field_names(cls: type) -> Iterator[str]:
    if issubclass(cls, Enum):
        return
    if issubclass(cls, msgspec.Struct):
        yield from cls.__struct_fields__
    elif is_dataclass(cls):
        yield from cls.__dataclass_fields__
    else:
        yield from (attribute.name for attribute in getattr(cls, "__attrs_attrs__", ()))


def _is_open(hint: Any, within: tuple[type, ...]) -> bool:  # noqa: ANN401
    """May a value of this annotation hold what has to be looked at?"""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _is_open(inner[0], within)
    if isinstance(hint, typing.NewType):
        return _is_open(hint.__supertype__, within)
    if hint is None or hint is Ellipsis or origin is typing.Literal:
        return False
    if isinstance(origin, type) and issubclass(origin, Mapping) and inner[0] not in _ATOMS:
        return True
    if inner:
        known = origin in _CONNECTIVES or not _is_class_open(origin, within)
        return not known or any(_is_open(each, within) for each in inner)
    return hint not in _ATOMS and (hint in _CONTAINERS or _is_class_open(hint, within))


def _is_class_open(cls: Any, within: tuple[type, ...]) -> bool:  # noqa: ANN401
    if not isinstance(cls, type):
        return True  # Any, a type variable, an alias
    if issubclass(cls, Enum | Collection) and not issubclass(cls, tuple):
        return False
    if cls in within:
        return True  # it may go on without end
    names = tuple(_field_names(cls))
    if not names:
        return cls is not tuple and not models.is_model(cls)
    if not issubclass(cls, msgspec.Struct) and any(name.startswith("_") for name in names):
        return True
    hints = _hints(cls)
    return any(_is_open(hints.get(name, Any), (*within, cls)) for name in names)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # annotations that cannot be resolved say nothing
        return {}


_CONNECTIVES: Final = frozenset({typing.Union, UnionType})
_CONTAINERS: Final = frozenset({dict, *_SEQUENCES})
