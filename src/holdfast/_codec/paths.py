"""Finds where inside a value something cannot be stored, for the error's path. Slow, and only used then.

The exception is `holds_nan`, which looks through values whose JSON makes it possible that they hold one.
Paths name fields, indexes and keys that are identifiers; other keys and all values stay out of them [K4].
"""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgspec

from holdfast._codec import models
from holdfast.errors import PayloadNotSerializable

__all__ = ["blame", "holds_nan", "refuse_nan"]

_ATOMS: Final = frozenset(
    {str, int, bool, type(None), bytes, bytearray, memoryview, Decimal, UUID, msgspec.Raw}
    | {datetime.datetime, datetime.date, datetime.time, datetime.timedelta}
)
_SEQUENCES: Final = frozenset({list, tuple, set, frozenset})
_MAX_DEPTH: Final = 200
_NONE: Final = object()


def holds_nan(value: object) -> bool:
    """Whether a NaN or an infinity is anywhere in a value that has been encoded."""
    stack: list[Any] = [value]
    while stack:
        part = stack.pop()
        kind = type(part)
        if kind is float:
            if part - part != 0.0:
                return True
        elif kind in _ATOMS:
            continue
        elif kind is dict:
            stack.extend(part)
            stack.extend(part.values())
        elif kind in _SEQUENCES:
            stack.extend(part)
        else:
            stack.extend(_opened(part))
    return False


def _opened(value: object) -> Iterator[object]:
    """What is inside a value that is no plain container."""
    if models.is_model(type(value)):
        yield models.dump(value)
    elif isinstance(value, float):
        yield float(value)
    elif isinstance(value, dict):
        yield from value
        yield from value.values()
    else:
        yield from (part for _, part in _parts(value))


def refuse_nan(value: object) -> PayloadNotSerializable:
    """The error for a value that holds a NaN or an infinity."""
    path = "$"
    while (inner := next((p for p in _parts(value) if holds_nan(p[1])), None)) is not None:
        step, value = inner
        path += step
    return PayloadNotSerializable("NaN and infinities cannot be stored as JSON", path)


def holds_masked(value: object) -> bool:
    """Whether a secret of pydantic's, which it masks in JSON, is anywhere in a value."""
    stack: list[Any] = [value]
    while stack:
        part = stack.pop()
        if hasattr(type(part), "get_secret_value"):
            return True
        if type(part) not in _ATOMS:
            stack.extend(inner for _, inner in _held(part))
    return False


def refuse_masked(value: object) -> PayloadNotSerializable:
    """The error for a value that holds a masked secret."""
    path = "$"
    while (inner := next((p for p in _held(value) if holds_masked(p[1])), None)) is not None:
        step, value = inner
        path += step
    return PayloadNotSerializable(
        f"pydantic masks a `{type(value).__qualname__}` in JSON: give its model a field_serializer that "
        "reveals it, or store a reference to the secret",
        path,
    )


def _held(value: object) -> Iterator[tuple[str, Any]]:
    """The parts of a value as it holds them; of a model too, whose JSON has no secrets any more."""
    if models.is_model(type(value)):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    else:
        yield from _parts(value)


def blame(value: object, encode: Callable[[object], bytes], error: Exception) -> PayloadNotSerializable:
    """The error for a value that `encode` refused with `error`, with the path of the part it is about."""
    path = "$"
    if isinstance(error, RecursionError):
        return PayloadNotSerializable("the value is nested too deeply, or contains itself", path)
    for _ in range(_MAX_DEPTH):
        inner = next((p for p in _parts(value) if not _encodes(p[1], encode)), None)
        if inner is None:
            break
        step, value = inner
        path += step
    return PayloadNotSerializable(_reason(value, encode), path)


def _encodes(value: object, encode: Callable[[object], bytes]) -> bool:
    try:
        encode(value)
    except Exception:  # models and hooks raise what they like; which part fails is all that matters here
        return False
    return True


def _reason(value: object, encode: Callable[[object], bytes]) -> str:
    if isinstance(value, str):
        return "a string that holds a lone surrogate cannot be stored as JSON"
    if isinstance(value, int):
        return "an integer this large cannot be stored as JSON"
    if models.is_model(type(value)):
        name = type(value).__qualname__
        return (
            f"pydantic cannot turn a `{name}` into JSON (bytes that are not UTF-8 need base64 in its config)"
        )
    if inspect.iscoroutine(value):
        return "a coroutine cannot be stored: is there an `await` missing?"
    if isinstance(value, dict):
        key = next((key for key in value if not _encodes({key: None}, encode)), _NONE)
        if key is _NONE:
            return "two keys of the dict are the same key in JSON, whose keys are all text"
        return f"as a dict key, {_reason(key, encode)}"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"a value of type `{name}` cannot be stored as JSON"


def _parts(value: object) -> Iterator[tuple[str, Any]]:
    """The parts of a value with the step of the path that leads to each."""
    if isinstance(value, dict):
        yield from ((_key_step(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("[...]", part) for part in value)
    elif isinstance(value, Enum):
        yield ".value", value.value
    elif models.is_model(type(value)):
        yield from _model_parts(value)
    else:
        yield from (
            (f".{name}", getattr(value, name)) for name in _field_names(value) if hasattr(value, name)
        )


def _model_parts(value: object) -> Iterator[tuple[str, Any]]:
    try:
        dumped = models.dump(value)
    except Exception:  # a model that cannot be dumped is itself what the error is about
        return
    if isinstance(dumped, dict | list):
        yield from _parts(dumped)
    else:
        yield "", dumped


def _field_names(value: object) -> tuple[str, ...]:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if is_dataclass(value):
        return tuple(field.name for field in fields(value))
    return tuple(attribute.name for attribute in getattr(type(value), "__attrs_attrs__", ()))


def _key_step(key: object) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() and len(key) <= 40 else "[...]"
