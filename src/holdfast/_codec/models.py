"""pydantic's side of the codec, by duck typing: it is used where a program uses it, and never imported.

Models are written by field name in pydantic's JSON mode, and read back by name or alias, so that a model
whose two aliases differ comes back all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache, lru_cache
from types import GenericAlias
from typing import Any, Final, TypeAlias

import msgspec

__all__ = ["Misfit", "Validate", "dump", "is_model", "validator"]

Validate: TypeAlias = Callable[[bytes], Any]

_SCHEMA: Final = "__get_pydantic_core_schema__"
_NAMES: Final = (2, 11)
"""The first pydantic that can read fields by name whatever their aliases."""
_validators: Final[dict[Any, Validate]] = {}


class Misfit(ValueError):
    """What pydantic refused, without the values that its own message shows [K4]."""

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


def is_model(cls: object) -> bool:
    """Whether values of this class are pydantic's business: models, and types such as `HttpUrl`."""
    return isinstance(cls, type) and _is_model(cls)


@lru_cache(maxsize=4096)
def _is_model(cls: type) -> bool:
    return hasattr(cls, _SCHEMA) and not is_dataclass(cls)


def dump(value: object) -> object:
    """Turn a model, or a value of a pydantic type, into what JSON can hold."""
    model_dump = getattr(value, "model_dump", None)
    if model_dump is None:
        return _adapter(type(value)).dump_python(value, mode="json", warnings=False)
    return model_dump(mode="json", by_alias=_version() < _NAMES, round_trip=True, warnings=False)


def validator(cls: object) -> Validate:
    """A function from JSON to values of `cls`, which raises `Misfit`.

    Raises:
        TypeError: if pydantic is not loaded or has no idea of the type.
    """
    found = _validators.get(cls)
    if found is None:
        found = _validators[cls] = _build(cls)
    return found


def _build(cls: object) -> Validate:
    own = getattr(cls, "__pydantic_validator__", None) if is_model(cls) else None
    read = _read_by_adapter(cls) if own is None else own.validate_json
    flags = {"by_alias": True, "by_name": True} if _version() >= _NAMES else {}
    refused = sys.modules["pydantic"].ValidationError

    def validate(data: bytes) -> object:
        try:
            return read(data, **flags)
        except refused as error:
            raise _misfit(error, skip=0 if own else 1) from None

    return validate


def _read_by_adapter(cls: object) -> Callable[..., Any]:
    """In a tuple, since only so dataclasses take its config, which makes bytes what msgspec writes."""
    read = _adapter(GenericAlias(tuple, (cls,))).validate_json
    return lambda data, **flags: read(b"[" + data + b"]", **flags)[0]


def _adapter(cls: object) -> Any:  # noqa: ANN401 - a TypeAdapter, whose module is not imported here
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or _version() < (2, 9):
        raise TypeError("it needs pydantic 2.9 or later, and that it is loaded")
    try:
        return pydantic.TypeAdapter(cls, config={"val_json_bytes": "base64", "ser_json_bytes": "base64"})
    except pydantic.errors.PydanticUserError as error:
        raise TypeError("pydantic has no schema for it") from error


@cache
def _version() -> tuple[int, int]:
    major, minor = sys.modules["pydantic"].VERSION.split(".")[:2]
    return int(major), int(minor)


def _misfit(error: Any, skip: int) -> Misfit:  # noqa: ANN401 - a pydantic.ValidationError
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(map(_step, first["loc"][skip:]))
    title = error.title.removeprefix("tuple[").removesuffix("]") if skip else error.title
    return Misfit(f"`{title}` refuses it: {first['type']}", f"${path}")


def _step(at: int | str) -> str:
    if isinstance(at, int):
        return f"[{at}]"
    return f".{at}" if at.isidentifier() and len(at) <= 40 else "[...]"


def validate_builtins(cls: object, value: object) -> object:
    """The hook for models inside msgspec's containers, where the JSON has been read already."""
    if cls is object:
        return value
    return validator(cls)(msgspec.json.encode(value))
