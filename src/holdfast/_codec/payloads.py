"""Values to JSON and back, by msgspec, with one decoder per type made once [K2].

Knows no limits, no contexts and no payload codec: that is `codec`. The fast path of both directions is one
call into msgspec, and before encoding a look at what msgspec would lose; values are walked for a NaN only
when their JSON makes it possible that they held one.

What comes back is of the type that is written where it is read, not of a subclass of it; in a place of `Any`
it is plain JSON: dicts, lists, text, numbers. A time zone comes back as its offset, in whole minutes. A
`__post_init__` runs again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, LiteralString, Never, NoReturn, TypeAlias

import msgspec

from holdfast._codec import models, paths, survey, unions
from holdfast.errors import ConfigurationError, PayloadDecodeError

__all__ = ["Decode", "check_type", "decoder", "encode", "is_json", "misfit", "type_name"]

Decode: TypeAlias = Callable[[bytes], Any]


def _encode_other(value: object) -> object:
    """msgspec's hook: pydantic's types, and subclasses of plain types as the plain type."""
    if models.is_model(type(value)):
        return models.dump(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"objects of type {type_name(type(value))} are not supported")


_to_json: Final = msgspec.json.Encoder(enc_hook=_encode_other).encode
_from_json: Final = msgspec.json.Decoder().decode

_MAX_DECODERS: Final = 4096
_decoders: Final[dict[Any, Decode]] = {
    **dict.fromkeys((Any, object, Never, NoReturn), _from_json),
    LiteralString: msgspec.json.Decoder(str).decode,
}


def encode(value: object) -> bytes:
    """The JSON of a value.

    Raises:
        PayloadNotSerializable: if it has none, or none that could be read back as this value.
    """
    try:
        data = _to_json(survey.whole(value))
    except Exception as error:  # models and user classes run their own code in there
        raise paths.blame(value, _encode_whole, error) from None
    # What msgspec makes of a NaN or an infinity: null where it is a value, a word where it is a dict's key.
    # (`find` takes half the time of `in`.)
    find = data.find
    suspicious = find(b"null") >= 0 or find(b'nan":') >= 0 or find(b'inf":') >= 0
    if suspicious and value is not None and paths.holds_nan(value):
        raise paths.refuse_nan(value)
    if find(_MASK) >= 0 and paths.holds_masked(value):
        raise paths.refuse_masked(value)
    return data


def _encode_whole(value: object) -> bytes:
    return _to_json(survey.whole(value))


_MASK: Final = b"**********"
"""What pydantic writes in place of a SecretStr."""


def check_type(type: object) -> None:
    """Find out early whether values of this type can be read from JSON as what they were.

    Raises:
        ConfigurationError: if not.
    """
    decoder(type)


def is_json(data: bytes) -> bool:
    """Whether these bytes are JSON of any kind."""
    try:
        _from_json(data)
    except Exception:  # malformed, not UTF-8, or nested without end
        return False
    return True


def decoder(type: object) -> Decode:
    """The function from JSON to values of this type; `misfit` makes what it raises readable.

    Raises:
        ConfigurationError: if values of this type cannot be read from JSON.
    """
    try:
        return _decoders[type]
    except KeyError:
        found = _build(type)
        if len(_decoders) < _MAX_DECODERS:
            _decoders[type] = found
        return found
    except TypeError:  # not hashable, such as Annotated with a list in it
        return _build(type)


def _build(type: object) -> Decode:
    if isinstance(type, str):
        raise ConfigurationError(f"the type is only text, {type!r:.80}: pass the type itself")
    try:
        return models.validator(type) if models.is_model(type) else _build_with_msgspec(type)
    except TypeError as refusal:
        raise ConfigurationError(f"values of type `{type_name(type)}` cannot be stored: {refusal}") from None
    except Exception as error:  # what annotations that mean nothing make of themselves
        raise ConfigurationError(
            f"values of type `{type_name(type)}` cannot be stored: an annotation in it cannot be resolved "
            f"({_CLASS(error).__name__}: {error})"
        ) from None


def _build_with_msgspec(type: Any) -> Decode:  # noqa: ANN401
    try:
        made = msgspec.json.Decoder(type, dec_hook=models.validate_builtins)
        described = msgspec.inspect.type_info(type)
    except TypeError as refusal:
        return _build_with_pydantic(type, refusal)
    for part in _walk(described):
        _check_part(part)
    return made.decode


def _check_part(part: object) -> None:
    """Refuses what msgspec takes, but cannot give back as it was."""
    inspect = msgspec.inspect
    if isinstance(part, inspect.CustomType) and part.cls is not object and not models.is_model(part.cls):
        raise TypeError(f"`{type_name(part.cls)}` is no type that JSON is read into")
    if isinstance(part, inspect.DictType) and not isinstance(part.key_type, inspect.AnyType):
        keys = part.key_type.types if isinstance(part.key_type, inspect.UnionType) else (part.key_type,)
        if any(isinstance(key, inspect.BoolType | inspect.NoneType) for key in keys) or len(keys) > 1:
            raise TypeError("the keys of a dict are text in JSON, which does not tell these keys apart")


def _build_with_pydantic(type: object, refusal: TypeError) -> Decode:
    """For unions of models, which msgspec does not tell apart; a type strange to both stays refused."""
    try:
        if not unions.holds_model(type):
            raise refusal
        unions.check(type)
        return models.validator(type)
    except TypeError as error:
        told = refusal if isinstance(error.__cause__, Exception) else error
        raise TypeError(f"{told}{_HINT if 'union' in str(refusal) else ''}") from None


_HINT: Final = (
    "; make a union of msgspec.Structs with tag=True, or of pydantic models with a Literal field that differs"
)


def _walk(described: object) -> Iterator[object]:
    """The parts of a type as msgspec describes it."""
    seen: set[int] = set()
    stack = [described]
    while stack:
        part = stack.pop()
        if isinstance(part, tuple):
            stack.extend(part)
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field) and id(part) not in seen:
            seen.add(id(part))
            yield part
            stack.extend(getattr(part, name) for name in part.__struct_fields__)


def type_name(type: object) -> str:
    """How a type is called in an error."""
    name = getattr(type, "__qualname__", None) if isinstance(type, _CLASS) else None
    return name or str(type).removeprefix("typing.")


_CLASS: Final = type

_WHERE: Final = re.compile(r" - at `(?:(key)` in `)?(\$[^`]*)`$")
_SAFE: Final = re.compile(
    r"(?:Expected|JSON is malformed:|Input data was truncated|Object missing required field).*"
    r"|Invalid (?!enum value|value).*"
)
_UNSAFE: Final = {
    "Invalid enum value": "not one of the values that the type allows",
    "Invalid value": "a tag that the type does not know",
    "Object contains unknown field": "a field that the type does not have",
}


def misfit(error: Exception) -> PayloadDecodeError:
    """The error for JSON that a decoder refused with `error`. It shows types and paths, no values [K4]."""
    inner = error.__cause__ if isinstance(error.__cause__, models.Misfit) else error
    text, path = str(error), "$"
    if found := _WHERE.search(text):
        text, path = text[: found.start()], found[2]
    if isinstance(inner, models.Misfit):
        return PayloadDecodeError(inner.reason, path + inner.path[1:])
    reason = _reason(error, text)
    return PayloadDecodeError(f"{reason}, in a key" if found and found[1] else reason, path)


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "the text is not UTF-8"
    if not isinstance(error, msgspec.DecodeError) or error.__cause__ is not None:
        return "refused by the type's own checks"
    for beginning, reason in _UNSAFE.items():
        if text.startswith(beginning):
            return reason
    return text if _SAFE.fullmatch(text) else "does not fit the type"
