"""Replies to requests as JSON: a value or an exception, in one envelope, for a request has one reply."""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast._codec.failures import Failure

__all__ = ["Envelope", "accept", "load", "reject"]


class Envelope(msgspec.Struct, kw_only=True):
    """A stored reply: `error` if the request was rejected, else the JSON of the value."""

    value: msgspec.Raw = msgspec.Raw(b"null")
    error: Failure | None = None


def accept(value: bytes) -> bytes:
    """The envelope around the JSON of a value."""
    return b'{"value":%b}' % value


def reject(error: bytes) -> bytes:
    """The envelope around the JSON of an exception, as `failures` writes it."""
    return b'{"error":%b}' % error


load: Final = msgspec.json.Decoder(Envelope).decode
