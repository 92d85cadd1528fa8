"""What an exception was made from, and what it holds, as JSON and back: its arguments and attributes.

Only values that come back exactly as they were: plain ones, and a few classes of Python's that exceptions are
often given. Anything else makes the whole be left out; then an exception has only its text.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

__all__ = ["attributes_of", "made_from", "pack", "restore", "unpack"]

_MOST_NESTED: Final = 8
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_WRITERS: Final[dict[type, Callable[[Any], str]]] = {
    float: repr,
    bytes: lambda value: base64.b64encode(value).decode(),
    Decimal: str,
    UUID: str,
    dt.datetime: dt.datetime.isoformat,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
}
_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "float": float,
    "bytes": base64.b64decode,
    "Decimal": Decimal,
    "UUID": UUID,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
}


def pack(value: Any, depth: int = _MOST_NESTED) -> Any:  # noqa: ANN401
    """A value as JSON. An object in it is never the value itself: its only key says what it stands for.

    Raises:
        TypeError: if it would not come back as it was.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _WRITERS:
        return {kind.__name__: _WRITERS[kind](value)}
    if depth > 0 and kind in (list, tuple):
        packed = [pack(part, depth - 1) for part in value]
        return packed if kind is list else {"tuple": packed}
    if depth > 0 and kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: pack(part, depth - 1) for key, part in value.items()}}
    raise TypeError


def unpack(packed: Any) -> Any:  # noqa: ANN401
    """What `pack` was given.

    Raises:
        ValueError, TypeError, KeyError: if it is something else.
    """
    if isinstance(packed, list):
        return [unpack(part) for part in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, inside),) = packed.items()
    if kind == "tuple":
        return tuple(unpack(part) for part in inside)
    if kind == "dict":
        return {key: unpack(part) for key, part in inside.items()}
    return _READERS[kind](inside)


def made_from(error: BaseException) -> tuple[Any, ...]:
    """What its class takes to make it again: it may say so itself, as an `OSError` with a file name does."""
    made = _reduced(error)
    return made[1] if made[0] is type(error) and isinstance(made[1], tuple) else error.args


def attributes_of(error: BaseException) -> dict[str, Any]:
    """What it holds by name, packed; in its dict or in slots. What cannot be packed is left out."""
    held = dict(vars(error))
    made = _reduced(error)
    if len(made) > 2 and isinstance(made[2], dict):
        held |= made[2]  # such as the name of an ImportError, which is in no dict
    for name in _slots(type(error)):
        if hasattr(error, name):
            held[name] = getattr(error, name)
    packed = {}
    for name, value in held.items():
        if not name.startswith("__"):
            try:
                packed[name] = pack(value)
            except TypeError:
                continue
    return packed


def restore(error: BaseException, held: dict[str, Any]) -> None:
    """Gives it what it held, whatever its class thinks of being changed."""
    for name, value in held.items():
        if hasattr(type(error), name):
            object.__setattr__(error, name, value)
        else:
            vars(error)[name] = value


def _reduced(error: BaseException) -> tuple[Any, ...]:
    try:
        made = error.__reduce__()
    except Exception:  # a __reduce__ of the user's own
        return None, None
    return made if isinstance(made, tuple) and len(made) > 1 else (None, None)


def _slots(cls: type) -> set[str]:
    found: set[str] = set()
    for each in cls.__mro__:
        slots = vars(each).get("__slots__", ())
        found.update((slots,) if isinstance(slots, str) else slots)
    return {name for name in found if not name.startswith("__")}
