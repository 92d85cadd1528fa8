"""The arguments of a call as JSON, and back, each by the type of its parameter.

An array is positional arguments and an object keyword arguments, which is also what SQL and the command line
pass; both at once are an object with the positional ones under `"*"`.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Final

import msgspec

from holdfast._codec import payloads
from holdfast.errors import ConfigurationError, PayloadDecodeError, PayloadNotSerializable

__all__ = ["Parameters", "decode", "encode", "names_of_caller"]

_POSITIONAL: Final = "*"
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

_read_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _closed_over(fn: Callable[..., Any]) -> dict[str, Any]:
    """The variables that a function closes over, by name; without those that are not bound yet."""
    found = {}
    code = getattr(fn, "__code__", None)
    for name, cell in zip(
        code.co_freevars if code else (), getattr(fn, "__closure__", None) or (), strict=True
    ):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # empty: `inspect.getclosurevars` would fail here
            continue
    return found


class Parameters:
    """What a function takes and gives, with its annotations resolved when they are first needed.

    `localns` are names for annotations that are text (`from __future__ import annotations`) and mean
    something local. What the function closes over is known anyway.
    """

    def __init__(self, fn: Callable[..., Any], localns: Mapping[str, Any] | None = None) -> None:
        self.name: str = fn.__qualname__.rpartition("<locals>.")[2]
        self.signature: inspect.Signature = inspect.signature(fn)
        self._fn = inspect.unwrap(fn)
        self._localns = {**_closed_over(self._fn), **(localns or {})}
        self._enough, self._most = self._counts()

    def __repr__(self) -> str:
        return f"Parameters({self.name}{self.signature})"

    @cached_property
    def types(self) -> dict[str, Any]:
        """The type of each parameter by name; `Any` where there is no annotation.

        For `*args` and `**kwargs` it is the type of one of them.

        Raises:
            ConfigurationError: if an annotation cannot be resolved.
        """
        return {name: self._hint(name, found.annotation) for name, found in self.signature.parameters.items()}

    @cached_property
    def returns(self) -> Any:  # noqa: ANN401 - whatever the user wrote behind the arrow
        """The type of the result; `Any` where there is no annotation.

        Raises:
            ConfigurationError: if the annotation cannot be resolved.
        """
        return self._hint("return", self.signature.return_annotation)

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Find out whether the function could be called like this.

        Raises:
            TypeError: if not, as calling it would.
        """
        if not kwargs and self._enough <= len(args) <= self._most:
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None

    def check_types(self) -> None:
        """Find out early whether all arguments and the result can be stored.

        Raises:
            ConfigurationError: if one cannot; the text names it.
        """
        for name, hint in {**self.types, "return": self.returns}.items():
            try:
                payloads.decoder(hint)
            except ConfigurationError as error:
                raise ConfigurationError(f"{self.name}(), `{name}`: {error}") from None

    @cached_property
    def positional(self) -> tuple[str, ...]:
        """Names of the parameters that positional arguments go to, in order."""
        return tuple(
            name
            for name, found in self.signature.parameters.items()
            if found.kind in (found.POSITIONAL_ONLY, found.POSITIONAL_OR_KEYWORD)
        )

    @cached_property
    def named(self) -> frozenset[str]:
        """Names of the parameters that keyword arguments may go to."""
        return frozenset(
            name
            for name, found in self.signature.parameters.items()
            if found.kind in (found.KEYWORD_ONLY, found.POSITIONAL_OR_KEYWORD)
        )

    def variadic(self, kind: inspect._ParameterKind) -> str | None:
        """The name behind `*` or `**`, if the function has one."""
        return next((name for name, found in self.signature.parameters.items() if found.kind is kind), None)

    def _counts(self) -> tuple[int, float]:
        """How many positional arguments are enough, and how many are the most."""
        found = self.signature.parameters.values()
        if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in found):
            return 1, 0  # never enough: there is no call with positional arguments only
        plain = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        enough = sum(p.default is p.empty for p in plain)
        return enough, float("inf") if any(p.kind is p.VAR_POSITIONAL for p in found) else len(plain)

    def _hint(self, name: str, annotation: object) -> Any:  # noqa: ANN401
        if annotation is inspect.Parameter.empty:
            return Any
        holder = SimpleNamespace(__annotations__={name: annotation})
        generic = {each.__name__: each for each in getattr(self._fn, "__type_params__", ())}
        try:
            found = typing.get_type_hints(
                holder, self._fn.__globals__, generic | self._localns, include_extras=True
            )[name]
        except (NameError, AttributeError, TypeError, SyntaxError) as error:
            raise ConfigurationError(
                f"{self.name}(): the annotation of `{name}` cannot be resolved ({error}); its names must "
                "exist at run time, in the module of the function, not only under TYPE_CHECKING"
            ) from None
        return Any if isinstance(found, typing.ParamSpecArgs | typing.ParamSpecKwargs) else found


def encode(args: tuple[object, ...], kwargs: dict[str, Any]) -> bytes:
    """The JSON of a call's arguments.

    Raises:
        PayloadNotSerializable: if one of them cannot be JSON.
    """
    if not kwargs:
        return payloads.encode(args)
    if _POSITIONAL in kwargs:
        raise PayloadNotSerializable("a keyword argument cannot be called `*`")
    return payloads.encode({_POSITIONAL: args, **kwargs} if args else kwargs)


def decode(data: bytes, parameters: Parameters) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in a call's JSON.

    Raises:
        PayloadDecodeError: if one does not fit its parameter's type, or all together do not fit the function.
    """
    positional, named = _split(data)
    args = tuple(_decode_positional(positional, parameters))
    kwargs = {name: _decode_one(raw, name, _type_of_keyword(name, parameters)) for name, raw in named.items()}
    try:
        parameters.check(args, kwargs)
    except TypeError as error:
        raise PayloadDecodeError(f"the stored arguments do not fit {error}") from None
    return args, kwargs


def _split(data: bytes) -> tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]:
    try:
        if data.lstrip()[:1] == b"[":
            return _read_array(data), {}
        named = _read_object(data)
        positional = named.pop(_POSITIONAL, None)
        return [] if positional is None else _read_array(positional), named
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise PayloadDecodeError("a call's arguments must be a JSON array or object") from None


def _decode_positional(raws: list[msgspec.Raw], parameters: Parameters) -> Iterator[Any]:
    names = parameters.positional
    rest = parameters.variadic(inspect.Parameter.VAR_POSITIONAL)
    for index, raw in enumerate(raws):
        name = names[index] if index < len(names) else rest
        yield _decode_one(raw, name or f"[{index}]", Any if name is None else parameters.types[name])


def _type_of_keyword(name: str, parameters: Parameters) -> Any:  # noqa: ANN401
    if name in parameters.named:
        return parameters.types[name]
    rest = parameters.variadic(inspect.Parameter.VAR_KEYWORD)
    return Any if rest is None else parameters.types[rest]


def _decode_one(raw: msgspec.Raw, name: str, hint: object) -> Any:  # noqa: ANN401
    decode = payloads.decoder(hint)
    try:
        return decode(bytes(raw))
    except Exception as error:  # classes check themselves in there with code of their own
        found = payloads.misfit(error)
        raise PayloadDecodeError(f"argument `{name}`: {found.reason}", found.path) from None


def names_of_caller() -> dict[str, Any]:
    """Names for annotations that mean something local to where a decorator stands: to the caller's caller."""
    frame = sys._getframe(2)
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)
