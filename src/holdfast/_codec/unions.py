"""Whether the members of a union can be told apart by their JSON.

Only for unions that msgspec declines and pydantic decides: pydantic always finds some member that fits, and
a value must not come back as another class than it was. No value is looked at here, only types.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from itertools import combinations
from types import UnionType
from typing import Any, Final

from holdfast._codec import models

__all__ = ["check", "holds_model"]

_NUMBERS: Final = frozenset({int, float})
_ALL: Final = frozenset({"null", "boolean", "number", "string", "array", "object"})


def holds_model(hint: object) -> bool:
    """Whether a model of pydantic's is anywhere in a type."""
    return any(models.is_model(each) for each in _walk(hint))


def check(hint: object) -> None:
    """Look at every union in a type.

    Raises:
        TypeError: if a value of one member may look like a value of another; the text says what to do.
    """
    for each in _walk(hint):
        if typing.get_origin(each) in (typing.Union, UnionType):
            for one, other in combinations(typing.get_args(each), 2):
                if _alike(_bare(one), _bare(other)):
                    raise TypeError(
                        f"`{_name(one)}` and `{_name(other)}` may look alike as JSON, and a value come back "
                        "as the wrong one"
                    )


def _walk(hint: object) -> Iterator[object]:
    """A type and every type that it is made of; not what is inside pydantic's models, which is their own."""
    seen: list[object] = []
    stack = [hint]
    while stack:
        part = stack.pop()
        if any(part is each for each in seen):
            continue
        seen.append(part)
        if typing.get_origin(part) is typing.Annotated and _is_tagged(part):
            stack.extend(map(_bare, typing.get_args(_bare(part))))
            continue
        yield part
        stack.extend(typing.get_args(part))
        stack.append(_bare(part))
        if isinstance(part, type) and not models.is_model(part):
            stack.extend(_fields(part).values())


def _bare(hint: object) -> Any:  # noqa: ANN401
    """A type without what `Annotated`, `NewType` and aliases add to it."""
    if typing.get_origin(hint) is typing.Annotated:
        return _bare(typing.get_args(hint)[0])
    inner = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    return hint if inner is None or isinstance(hint, type) else _bare(inner)


def _is_tagged(hint: object) -> bool:
    """`Annotated[A | B, Field(discriminator=…)]`: pydantic tells them apart."""
    return any(getattr(each, "discriminator", None) for each in typing.get_args(hint)[1:])


def _alike(one: Any, other: Any) -> bool:  # noqa: ANN401
    constants = _constants(one), _constants(other)
    if constants[0] is not None and constants[1] is not None:
        return bool(constants[0] & constants[1])
    if not _kinds(one) & _kinds(other):
        return False
    if one in _NUMBERS and other in _NUMBERS:
        return False
    if _is_record(one) and _is_record(other):
        return not _differ_in_a_constant(one, other) and (_swallows(one, other) or _swallows(other, one))
    return True


def _kinds(hint: Any) -> frozenset[str]:  # noqa: ANN401
    """Which kinds of JSON values of a type may be."""
    constants = _constants(hint)
    if constants is not None:
        return frozenset(_KINDS.get(type(value), "string") for value in constants)
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return frozenset().union(*(_kinds(_bare(each)) for each in typing.get_args(hint)))
    cls = typing.get_origin(hint) or hint
    if cls is None:
        return frozenset({"null"})
    if cls in _KINDS:
        return frozenset({_KINDS[cls]})
    if not isinstance(cls, type) or cls is object:
        return _ALL
    root = getattr(cls, "model_fields", {}).get("root")
    if root is not None:
        return _kinds(_bare(root.annotation))
    if _is_record(cls) or issubclass(cls, Mapping):
        return frozenset({"object"})
    if issubclass(cls, Collection) and not issubclass(cls, str | bytes | bytearray | memoryview):
        return frozenset({"array"})
    return _ALL if models.is_model(cls) else frozenset({"string"})


_KINDS: Final[dict[Any, str]] = {type(None): "null", bool: "boolean", int: "number", float: "number"}


def _constants(hint: Any) -> frozenset[Any] | None:  # noqa: ANN401
    """The JSON values of a `Literal` or an enum; None for any other type."""
    if typing.get_origin(hint) is typing.Literal:
        values = typing.get_args(hint)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        values = tuple(hint)
    else:
        return None
    return frozenset(value.value if isinstance(value, Enum) else value for value in values)


def _is_record(cls: object) -> bool:
    """Is it written as an object with the same fields every time?"""
    return isinstance(cls, type) and (
        dataclasses.is_dataclass(cls) or typing.is_typeddict(cls) or hasattr(cls, "model_fields")
    )


def _fields(cls: Any) -> dict[str, Any]:  # noqa: ANN401
    """The annotations of a record's fields."""
    if hasattr(cls, "model_fields"):
        return {name: field.annotation for name, field in cls.model_fields.items()}
    if not _is_record(cls) and not hasattr(cls, "_fields"):
        return {}
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # pydantic will say that they cannot be resolved
        return {}


def _required(cls: Any) -> frozenset[str]:  # noqa: ANN401
    if hasattr(cls, "model_fields"):
        return frozenset(name for name, field in cls.model_fields.items() if field.is_required())
    if dataclasses.is_dataclass(cls):
        missing = dataclasses.MISSING
        return frozenset(
            field.name
            for field in dataclasses.fields(cls)
            if field.init and field.default is missing and field.default_factory is missing
        )
    return frozenset(getattr(cls, "__required_keys__", ()))


def _swallows(one: Any, other: Any) -> bool:  # noqa: ANN401
    """May `other`, as JSON, be read as `one` with no field left over?"""
    left_over = set(_fields(other)) - set(_fields(one))
    tolerant = getattr(one, "model_config", {}).get("extra") == "allow"
    optional = typing.is_typeddict(other) and not other.__total__
    return _required(one) <= set(_fields(other)) and (not left_over or tolerant or optional)


def _differ_in_a_constant(one: Any, other: Any) -> bool:  # noqa: ANN401
    mine, yours = _fields(one), _fields(other)
    for name in mine.keys() & yours.keys():
        a, b = _constants(_bare(mine[name])), _constants(_bare(yours[name]))
        if a is not None and b is not None and not a & b:
            return True
    return False


def _name(hint: object) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
