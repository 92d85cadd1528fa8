"""The codec of one runtime or client: limits, the user's payload codec, one door for every kind of payload.

The JSON is made in `payloads`, `calls`, `failures` and `replies`; this room adds what depends on settings
[K2] [K3].
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

from holdfast._codec import calls, failures, payloads, replies
from holdfast._codec.calls import Parameters
from holdfast._codec.failures import ErrorRegistry
from holdfast.errors import ConfigurationError, PayloadDecodeError, PayloadTooLarge
from holdfast.types import PayloadCodec, PayloadContext

__all__ = ["Codec"]

T = TypeVar("T")


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
        """
        data = self._to_json(value)
        return data if self._payload_codec is None else self._apply(data, context)

    def _to_json(self, value: object) -> bytes:
        data = payloads.encode(value)
        if len(data) > self._max_payload:
            raise PayloadTooLarge(len(data), self._max_payload)
        return data

    @overload
    def decode(self, data: bytes, type: type[T], context: PayloadContext) -> T: ...
    @overload
    def decode(self, data: bytes, type: object, context: PayloadContext) -> Any: ...  # noqa: ANN401
    def decode(self, data: bytes, type: object, context: PayloadContext) -> Any:
        """The value of the type that is in stored bytes.

        Raises:
            PayloadDecodeError: if they do not fit the type.
            ConfigurationError: if no value of this type can be read from JSON.
        """
        decode = payloads.decoder(type)
        if self._payload_codec is not None:
            data = self._open(data, context)
        return _decoded(data, decode)

    def check_type(self, type: object) -> None:
        """Find out early whether values of this type can be read from JSON.

        Raises:
            ConfigurationError: if not.
        """
        payloads.decoder(type)

    def encode_call(self, args: tuple[object, ...], kwargs: dict[str, Any], context: PayloadContext) -> bytes:
        """The bytes to store for the arguments of a call: an array if all are positional, else an object.

        Raises:
            PayloadNotSerializable, PayloadTooLarge: as `encode` does.
        """
        data = calls.encode(args, kwargs)
        if len(data) > self._max_payload:
            raise PayloadTooLarge(len(data), self._max_payload)
        return self._apply(data, context)

    def decode_call(
        self, data: bytes, parameters: Parameters, context: PayloadContext
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a stored call, each decoded to the type of its parameter.

        Raises:
            PayloadDecodeError: if one does not fit its type, or all together do not fit the function.
        """
        return calls.decode(self._open(data, context), parameters)

    def encode_error(self, error: BaseException, context: PayloadContext) -> bytes:
        """The bytes to store for an exception. Never fails, and bounds its size by itself."""
        return self._apply(failures.encode(error), context)

    def decode_error(self, data: bytes, context: PayloadContext, registry: ErrorRegistry) -> BaseException:
        """The exception in stored bytes, as itself where its class is known, else a `RemoteError`.

        Raises:
            PayloadDecodeError: if the bytes hold no exception.
        """
        return failures.rebuild(self._load_failure(data, context), registry)

    def encode_reply(self, value: object, context: PayloadContext) -> bytes:
        """The bytes to store for the reply to a request.

        Raises:
            PayloadNotSerializable, PayloadTooLarge: as `encode` does.
        """
        return self._apply(replies.accept(self._to_json(value)), context)

    def encode_rejection(self, error: BaseException, context: PayloadContext) -> bytes:
        """The bytes to store for the exception that answers a request instead. Never fails."""
        return self._apply(replies.reject(failures.encode(error)), context)

    def decode_reply(
        self, data: bytes, type: object, context: PayloadContext, registry: ErrorRegistry
    ) -> Any:  # noqa: ANN401 - of the type asked for
        """The value in a stored reply.

        Raises:
            the exception that is in it instead, rebuilt as `decode_error` does.
            PayloadDecodeError: if the value does not fit the type.
        """
        try:
            envelope = replies.load(self._open(data, context))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise payloads.misfit(error) from None
        if envelope.error is not None:
            raise failures.rebuild(envelope.error, registry)
        return _decoded(bytes(envelope.value), payloads.decoder(type))

    def describe_error(self, data: bytes, context: PayloadContext) -> str:
        """Type and text of a stored exception, for lists and people, without rebuilding it."""
        return failures.describe(self._load_failure(data, context))

    def _load_failure(self, data: bytes, context: PayloadContext) -> failures.Failure:
        try:
            return failures.load(self._open(data, context))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise payloads.misfit(error) from None

    def _apply(self, data: bytes, context: PayloadContext) -> bytes:
        if self._payload_codec is None:
            return data
        sealed = self._payload_codec.encode(data, context)
        if not isinstance(sealed, bytes):
            raise ConfigurationError(
                f"Settings.codec.encode must return bytes, not {type(sealed).__qualname__}"
            )
        return sealed

    def _open(self, data: bytes, context: PayloadContext) -> bytes:
        if self._payload_codec is None:
            return data
        try:
            return self._payload_codec.decode(data, context)
        except PayloadDecodeError:
            raise
        except Exception as error:  # whatever the user's codec raises for bytes that it did not make
            name = type(self._payload_codec).__qualname__
            raise PayloadDecodeError(f"the payload codec `{name}` cannot decode the stored bytes") from error


def _decoded(data: bytes, decode: payloads.Decode) -> Any:  # noqa: ANN401 - of whatever type it decodes to
    try:
        return decode(data)
    except Exception as error:  # classes check themselves in there with code of their own
        raise payloads.misfit(error) from None
