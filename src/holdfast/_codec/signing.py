"""Signs stored payloads, so that whoever can write to the database cannot forge them.

Wraps the user's payload codec, if there is one: what is signed is what is stored.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

from holdfast.errors import ConfigurationError, PayloadDecodeError
from holdfast.types import PayloadCodec, PayloadContext

__all__ = ["Signed"]

_SIZE: Final = 32


class Signed:
    """A payload codec that puts an HMAC-SHA256 over the payload and its identity before what `inner` makes.

    The first key signs, any of them verifies: put a new key first, and drop the old one when no workflow that
    it signed for is left.
    """

    def __init__(self, keys: Sequence[bytes], inner: PayloadCodec | None = None) -> None:
        if not keys:
            raise ConfigurationError("signing needs at least one key")
        self._keys = tuple(keys)
        self._inner = inner

    def encode(self, data: bytes, context: PayloadContext, /) -> bytes:
        """Apply the inner codec, then sign."""
        stored = data if self._inner is None else self._inner.encode(data, context)
        return _signature(self._keys[0], stored, context) + stored

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        """Verify, then undo the inner codec.

        Raises:
            PayloadDecodeError: if no key made this signature for this payload in this place.
        """
        signature, stored = data[:_SIZE], data[_SIZE:]
        if not any(hmac.compare_digest(signature, _signature(key, stored, context)) for key in self._keys):
            raise PayloadDecodeError(
                "the signature of the stored bytes does not match any of Settings.hmac_keys"
            )
        return stored if self._inner is None else self._inner.decode(stored, context)


def _signature(key: bytes, stored: bytes, context: PayloadContext) -> bytes:
    made = hmac.new(key, digestmod="sha256")
    for part in (context.schema, context.workflow_id, context.kind, context.name):
        encoded = part.encode()
        made.update(len(encoded).to_bytes(4))
        made.update(encoded)
    made.update(stored)
    return made.digest()
