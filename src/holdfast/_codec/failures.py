"""Exceptions as JSON, and back as themselves where their class is known to this process.

Known are Python's own exceptions, this library's, and the registered ones; a name found in data is looked up
in that table and never imported. What is written is bounded, and writing never fails.
"""

from __future__ import annotations

import asyncio
import builtins
import inspect
import linecache
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from holdfast import errors as own
from holdfast._codec import contents
from holdfast.errors import ConfigurationError, RemoteError, StepFailed

__all__ = ["ErrorRegistry", "Failure", "describe", "encode", "load", "rebuild"]

_MAX_TEXT: Final = 4096
_MAX_TRACEBACK: Final = 8192
_MAX_DEPTH: Final = 3
_MAX_ERRORS: Final = 10
_MAX_FRAMES: Final = 25
_MAX_BYTES: Final = 256 * 1024


class Failure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One exception as it is stored: `args` are its own, `init` what its class takes if that is not the same,
    `state` what its attributes held, `errors` those inside a group.
    """

    type: str
    message: str = ""
    args: list[Any] | None = None
    init: list[Any] | None = None
    state: dict[str, Any] | None = None
    traceback: str = ""
    cause: Failure | None = None
    context: Failure | None = None
    suppress: bool = False
    errors: list[Failure] = []


def _full_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _known() -> dict[str, type[BaseException]]:
    from_python = [
        cls for cls in vars(builtins).values() if isinstance(cls, type) and issubclass(cls, Exception)
    ]
    ours = [cls for cls in vars(own).values() if isinstance(cls, type) and issubclass(cls, own.HoldfastError)]
    groups = [BaseExceptionGroup, asyncio.CancelledError]
    known = {_full_name(cls): cls for cls in (*from_python, *ours, *groups)}
    # What says that this very process cannot read must never come from what another has recorded.
    del known[_full_name(own.PayloadCodecError)]
    return known


_KNOWN: Final = _known()


class ErrorRegistry:
    """The exception classes that stored errors may be rebuilt as, besides Python's and this library's.

    Raises:
        ConfigurationError: if one is no exception class, or two have one name.
    """

    def __init__(self, classes: Iterable[type[BaseException]] = ()) -> None:
        self._classes = dict(_KNOWN)
        for cls in classes:
            self._add(cls)

    def _add(self, cls: type[BaseException]) -> None:
        if not isinstance(cls, type) or not issubclass(cls, BaseException):
            raise ConfigurationError(f"errors= takes exception classes, not {cls!r:.80}")
        if self._classes.setdefault(_full_name(cls), cls) is not cls:
            raise ConfigurationError(f"errors= has two classes called {_full_name(cls)}")

    def find(self, type_name: str) -> type[BaseException] | None:
        """The class of this full name, if it is known."""
        return self._classes.get(type_name)


def encode(error: BaseException) -> bytes:
    """The JSON of an exception, with its traceback as text, its causes, and the errors it groups."""
    try:
        for depth in (_MAX_DEPTH, 1):
            data = _to_json(_describe(error, depth))
            if len(data) <= _MAX_BYTES:
                return data
        return _to_json(_describe(error, 0))
    except Exception:  # an exception that cannot even be looked at must not make its record fail
        return _to_json(
            Failure(type=_full_name(type(error)), message=_text(error), traceback=_traceback(error))
        )


_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder(Failure).decode


def load(data: bytes) -> Failure:
    """What `encode` wrote.

    Raises:
        ValueError: if it is something else.
    """
    return _from_json(data)


def describe(failure: Failure) -> str:
    """Type and text in one line, as a traceback ends."""
    name = failure.type.removeprefix(f"{own.__name__}.")
    return f"{name}: {failure.message}" if failure.message else name


def _describe(error: BaseException, depth: int) -> Failure:
    grouped = _grouped(error)
    chained = depth > 0 and not isinstance(error, StepFailed)
    cause = error.__cause__ if chained else None
    context = error.__context__ if chained and cause is None and not error.__suppress_context__ else None
    args = _packed_args(error, error.args)
    init = _packed_args(error, contents.made_from(error))
    return Failure(
        type=_full_name(type(error)),
        message=_text(error),
        args=args,
        init=None if init == args else init,
        state=_packed_state(error),
        traceback=_traceback(error),
        cause=None if cause is None else _describe(cause, depth - 1),
        context=None if context is None else _describe(context, depth - 1),
        suppress=error.__suppress_context__ and cause is None,
        errors=[_describe(each, depth - 2) for each in grouped[-_MAX_ERRORS:]] if depth > 0 else [],
    )


def _grouped(error: BaseException) -> tuple[BaseException, ...]:
    if isinstance(error, StepFailed):
        return error.errors
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def _text(error: BaseException) -> str:
    try:
        text = str(error.args[0] if isinstance(error, BaseExceptionGroup) else error)
    except Exception:  # a class whose __str__ fails must not make its record fail
        return "(its text cannot be shown: __str__ failed)"
    return _clean(text[:_MAX_TEXT])


def _clean(text: str) -> str:
    """Text without lone surrogates, which JSON cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(_traceback_lines(error))
    except Exception:  # the same: classes with a broken __str__ or __notes__
        return ""
    return _clean(text if len(text) <= _MAX_TRACEBACK else f"...\n{text[-_MAX_TRACEBACK:]}")


def _traceback_lines(error: BaseException, depth: int = _MAX_DEPTH) -> Iterator[str]:
    """What `traceback.format_exception` gives, but for the carets: they cost ten times all the rest."""
    context = None if error.__cause__ is not None or error.__suppress_context__ else error.__context__
    if context is not None and depth > 0:
        yield from _traceback_lines(context, depth - 1)
        yield "\nDuring handling of the above exception, another exception occurred:\n\n"
    frames = list(traceback.walk_tb(error.__traceback__))
    if frames:
        yield "Traceback (most recent call last):\n"
    for frame, number in frames[-_MAX_FRAMES:]:
        code = frame.f_code
        line = linecache.getline(code.co_filename, number, frame.f_globals).strip()
        yield f'  File "{code.co_filename}", line {number}, in {code.co_name}\n' + (
            f"    {line}\n" if line else ""
        )
    text = _text(error)
    yield f"{_full_name(type(error))}: {text}\n" if text else f"{_full_name(type(error))}\n"
    yield from (f"{note}\n" for note in getattr(error, "__notes__", ()))


def _packed_args(error: BaseException, args: tuple[Any, ...]) -> list[Any] | None:
    if isinstance(error, BaseExceptionGroup):
        return None
    try:
        packed = [contents.pack(value) for value in args]
    except TypeError:
        return None
    return packed if _fits(packed) else None


def _packed_state(error: BaseException) -> dict[str, Any] | None:
    if isinstance(error, own.HoldfastError) and _full_name(type(error)) in _KNOWN:
        return None
    state = {name: value for name, value in contents.attributes_of(error).items() if _fits(value)}
    return state if state and _fits(state) else None


def _fits(value: object) -> bool:
    try:
        return len(_to_json(value)) <= _MAX_TEXT
    except (ValueError, TypeError, OverflowError):  # lone surrogates, integers without end
        return False


def rebuild(failure: Failure, registry: ErrorRegistry) -> BaseException:
    """The exception that was stored, with its remote traceback as a note, its cause, and what it groups."""
    error = _rebuild_bare(failure, registry)
    if failure.context is not None:
        error.__context__ = rebuild(failure.context, registry)
    if failure.cause is not None:
        error.__cause__ = rebuild(failure.cause, registry)
    if failure.suppress:
        error.__suppress_context__ = True
    if failure.traceback:
        try:
            error.add_note(f"Remote traceback:\n{failure.traceback.rstrip()}")
        except Exception:  # a class that forbids it, such as a frozen one of attrs
            return error
    return error


def _rebuild_bare(failure: Failure, registry: ErrorRegistry) -> BaseException:
    cls = registry.find(failure.type)
    inner = [rebuild(each, registry) for each in failure.errors]
    try:
        if cls is None:
            return RemoteError(failure.type, failure.message)
        return _construct(cls, failure, inner)
    except Exception:  # a constructor that wants other arguments than those the exception shows
        return RemoteError(failure.type, failure.message)


def _construct(cls: type[BaseException], failure: Failure, inner: list[BaseException]) -> BaseException:
    state = {name: contents.unpack(value) for name, value in (failure.state or {}).items()}
    if issubclass(cls, BaseExceptionGroup):
        error: BaseException = cls(failure.message, inner)
    elif failure.args is None and failure.init is None:
        error = cls(failure.message)
    else:
        error = _call(cls, contents.unpack(failure.init or failure.args or []), state)
    if failure.args is not None:
        # A constructor may have made its text from them a second time.
        _set_args(error, tuple(contents.unpack(failure.args)))
    if isinstance(error, StepFailed):
        error.adopt(inner)
    contents.restore(error, state)
    return error


def _call(cls: type[BaseException], args: list[Any], state: dict[str, Any]) -> BaseException:
    """By its arguments; or by keywords, if it wants those and keeps them as attributes of the same names."""
    try:
        return cls(*args)
    except TypeError:
        wanted = inspect.signature(cls).parameters
        return cls(**{name: state[name] for name in wanted if name in state})


_set_args: Final = BaseException.args.__set__  # type: ignore[attr-defined]
