"""The codec of one runtime or client: limits, the user's payload codec, one door for every kind of payload.

The JSON is made in `payloads`, `calls`, `failures` and `replies`; this room adds what depends on settings
[K2] [K3].
What a payload codec has made is stored behind a byte that begins no JSON. So a process with another key, or
without the codec, knows that it must not judge what it cannot read, and bytes that are broken, or that SQL
has written, are not taken for that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar, overload

from holdfast._codec import calls, failures, payloads, replies
from holdfast._codec.calls import Parameters
from holdfast._codec.failures import ErrorRegistry
from holdfast.config import MAX_PAYLOAD_HARD
from holdfast.errors import PayloadCodecError, PayloadDecodeError, PayloadTooLarge
from holdfast.types import PayloadCodec, PayloadContext

__all__ = ["Codec"]

T = TypeVar("T")

SEALED: Final = b"\0"
"""The first byte of what a payload codec has made."""
MOST_SEALED: Final = 2 * MAX_PAYLOAD_HARD
"""Bytes that a payload may have behind the codec; what grows more than this is a mistake of the codec."""


class Codec:
    """Encodes and decodes every payload of one schema.

    `max_payload` is in bytes of JSON, checked before the payload codec sees it.
    """

    __slots__ = ("_max_payload", "_payload_codec", "schema")

    def __init__(self, schema: str, max_payload: int, payload_codec: PayloadCodec | None = None) -> None:
        self.schema: str = schema
        self._max_payload = max_payload
        self._payload_codec = payload_codec

    def encode(self, value: object, context: PayloadContext) -> bytes:
        """The bytes to store for a value.

        Raises:
            PayloadNotSerializable: if it cannot be JSON; NaN and infinities cannot.
            PayloadTooLarge: if it takes more than `max_payload` bytes.
            PayloadCodecError: if the payload codec fails.
        """
        return self._stored(self._limited(payloads.encode(value)), context)

    @overload
    def decode(self, data: bytes, type: type[T], context: PayloadContext) -> T: ...
    @overload
    def decode(self, data: bytes, type: object, context: PayloadContext) -> Any: ...  # noqa: ANN401
    def decode(self, data: bytes, type: object, context: PayloadContext) -> Any:
        """The value of the type that is in stored bytes.

        Raises:
            PayloadDecodeError: if they do not fit the type.
            PayloadCodecError: if the payload codec fails, or is not the one that made them.
            ConfigurationError: if no value of this type can be read from JSON.
        """
        return self._read(data, context, payloads.decoder(type))

    def check_type(self, type: object) -> None:
        """Find out early whether values of this type can be read from JSON.

        Raises:
            ConfigurationError: if not.
        """
        payloads.check_type(type)

    def encode_call(self, args: tuple[object, ...], kwargs: dict[str, Any], context: PayloadContext) -> bytes:
        """The bytes to store for the arguments of a call: an array if all are positional, else an object.

        Raises:
            PayloadNotSerializable, PayloadTooLarge, PayloadCodecError: as `encode` does.
        """
        return self._stored(self._limited(calls.encode(args, kwargs)), context)

    def decode_call(
        self, data: bytes, parameters: Parameters, context: PayloadContext
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a stored call, each decoded to the type of its parameter.

        Raises:
            PayloadDecodeError: if one does not fit its type, or all together do not fit the function.
            PayloadCodecError: as `decode` does.
        """
        return self._read(data, context, lambda opened: calls.decode(opened, parameters))

    def encode_error(self, error: BaseException, context: PayloadContext) -> bytes:
        """The bytes to store for an exception; it bounds its size by itself, and never fails because of it.

        Raises:
            PayloadCodecError: if the payload codec fails.
        """
        return self._stored(failures.encode(error), context)

    def decode_error(self, data: bytes, context: PayloadContext, registry: ErrorRegistry) -> BaseException:
        """The exception in stored bytes, as itself where its class is known, else a `RemoteError`.

        Raises:
            PayloadDecodeError: if the bytes hold no exception.
            PayloadCodecError: as `decode` does.
        """
        return self._read(data, context, lambda opened: failures.rebuild(failures.load(opened), registry))

    def encode_reply(self, value: object, context: PayloadContext) -> bytes:
        """The bytes to store for the reply to a request.

        Raises:
            PayloadNotSerializable, PayloadTooLarge, PayloadCodecError: as `encode` does.
        """
        return self._stored(replies.accept(self._limited(payloads.encode(value))), context)

    def encode_rejection(self, error: BaseException, context: PayloadContext) -> bytes:
        """The bytes to store for the exception that answers a request instead.

        Raises:
            PayloadCodecError: if the payload codec fails.
        """
        return self._stored(replies.reject(failures.encode(error)), context)

    def decode_reply(
        self, data: bytes, type: object, context: PayloadContext, registry: ErrorRegistry
    ) -> Any:  # noqa: ANN401 - of the type asked for
        """The value in a stored reply.

        Raises:
            the exception that is in it instead, rebuilt as `decode_error` does.
            PayloadDecodeError: if the value does not fit the type.
            PayloadCodecError: as `decode` does.
        """
        envelope = self._read(data, context, replies.load)
        if envelope.error is not None:
            raise failures.rebuild(envelope.error, registry)
        try:
            return payloads.decoder(type)(bytes(envelope.value))
        except Exception as error:  # classes check themselves in there with code of their own
            raise payloads.misfit(error) from None

    def describe_error(self, data: bytes, context: PayloadContext) -> str:
        """Type and text of a stored exception, for lists and people, without rebuilding it. Never fails:
        who looks may have no key.
        """
        try:
            return failures.describe(self._read(data, context, failures.load))
        except PayloadDecodeError as error:
            return f"(cannot be read here: {error.reason})"

    def _limited(self, data: bytes) -> bytes:
        if len(data) > self._max_payload:
            raise PayloadTooLarge(len(data), self._max_payload)
        return data

    def _stored(self, data: bytes, context: PayloadContext) -> bytes:
        return data if self._payload_codec is None else self._seal(self._payload_codec, data, context)

    def _read(self, data: bytes, context: PayloadContext, read: Callable[[bytes], T]) -> T:
        """Opens stored bytes and reads them. What was sealed and gives no JSON was not opened rightly."""
        opened = data if self._payload_codec is None else self._open(self._payload_codec, data, context)
        try:
            return read(opened)
        except Exception as error:  # classes check themselves in there with code of their own
            if data[:1] == SEALED:
                if self._payload_codec is None:
                    _refuse("stored through a payload codec, and this process has no Settings.codec", context)
                if not payloads.is_json(opened):
                    _refuse(f"`{_name(self._payload_codec)}` gives no JSON: another key or codec?", context)
            if isinstance(error, PayloadDecodeError):
                raise
            raise payloads.misfit(error) from None

    def _seal(self, codec: PayloadCodec, data: bytes, context: PayloadContext) -> bytes:
        try:
            sealed = codec.encode(data, context)
        except Exception as error:  # whatever the user's codec raises
            reason = f"the payload codec `{_name(codec)}` cannot encode: {type(error).__qualname__}"
            _refuse(reason, context, error)
        _check_bytes(codec, "encode", sealed, context)
        if len(sealed) > MOST_SEALED:
            raise PayloadTooLarge(len(sealed), MOST_SEALED)
        return SEALED + sealed

    def _open(self, codec: PayloadCodec, data: bytes, context: PayloadContext) -> bytes:
        """What is not behind the mark is given to the codec as it is: it may let plain JSON pass."""
        sealed = data[:1] == SEALED
        try:
            opened = codec.decode(data[1:] if sealed else data, context)
        except PayloadDecodeError:
            raise
        except Exception as error:  # whatever the user's codec raises for bytes that it did not make
            reason = f"the payload codec `{_name(codec)}` cannot decode the stored bytes"
            if sealed:
                _refuse(f"{reason}: {type(error).__qualname__}", context, error)
            raise PayloadDecodeError(reason) from error
        _check_bytes(codec, "decode", opened, context)
        return opened


def _check_bytes(codec: PayloadCodec, method: str, given: object, context: PayloadContext) -> None:
    if isinstance(given, bytes):
        return
    kind = type(given).__qualname__
    if inspect.iscoroutine(given):
        given.close()
        kind = "a coroutine; it cannot be async"
    _refuse(f"Settings.codec.{method} must return bytes, not {kind} (`{_name(codec)}`)", context)


def _refuse(reason: str, context: PayloadContext, cause: Exception | None = None) -> NoReturn:
    raise PayloadCodecError(reason, context.workflow_id, context.kind, context.name) from cause


def _name(codec: PayloadCodec) -> str:
    return type(codec).__qualname__
