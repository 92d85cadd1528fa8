"""Tokens: capabilities to send one message, for people and programs that know nothing of workflows.

A token is what it allows, and a signature over it: nothing is stored until it is redeemed, and then only the
message. The layout, in URL-safe base64 without padding, numbers big-endian:

    version 1 | key id 8 | expiry 8, in microseconds since 1970 | nonce 16
    | length 2, workflow id | length 2, topic | HMAC-SHA256 32
"""

import hashlib
import hmac
import os
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import uuid4

from holdfast import _clock, _keys
from holdfast._engine.engine import Engine
from holdfast._store.tokens import redeem_token
from holdfast.config import seconds_of
from holdfast.errors import ConfigurationError, TokenRejected

VERSION = 1
HEAD = struct.Struct(">B8sQ16s")
LENGTH = struct.Struct(">H")
SIGNATURE = 32
MOST_CHARACTERS = 1200
"""More than the longest names need; what is longer is not even looked at."""
NOBODYS_KEY = os.urandom(32)
"""Verifies what names a key that is not here, so that it takes as long as any other."""


class Grant(NamedTuple):
    """What a genuine token allows; `expires` in microseconds since 1970."""

    workflow_id: str
    topic: str
    nonce: bytes
    expires: int


class Tokens:
    """The tokens of one schema. The first key signs, any of them verifies."""

    __slots__ = ("_domain", "_keys", "_signing")

    def __init__(self, schema: str, keys: Sequence[bytes] | None) -> None:
        self._domain = b"holdfast token\0" + schema.encode() + b"\0"
        self._keys = {_key_id(key): key for key in keys or ()}
        self._signing = next(iter(self._keys), None)

    def issue(self, workflow_id: str, topic: str, ttl: float | timedelta) -> str:
        """A new token; see `Client.token`."""
        seconds = seconds_of(ttl)
        if not seconds:
            raise ValueError("the ttl of a token must be more than 0 seconds")
        expires = _clock.time_ns() // 1000 + max(round(seconds * 1_000_000), 1)
        grant = Grant(_keys.check_workflow_id(workflow_id), topic, os.urandom(16), expires)
        return self._seal(self._own_key(), grant)

    async def redeem(self, engine: Engine, token: str, value: object) -> None:
        """Sends the message of a token; see `Client.redeem`."""
        self._own_key()
        grant = self.open(token)
        if grant is None:
            raise TokenRejected
        payload = engine.codec.encode(value, engine.context(grant.workflow_id, "message", grant.topic))
        attempt = uuid4()
        if not await engine.ask(
            lambda connection: redeem_token(
                connection,
                engine.sql,
                workflow_id=grant.workflow_id,
                topic=grant.topic,
                payload=payload,
                key=_keys.token_key(grant.nonce),
                attempt=attempt,
                expires=grant.expires / 1_000_000,
                channel=engine.channel,
            )
        ):
            raise TokenRejected

    def open(self, token: str) -> Grant | None:
        """What a token allows, whether or not it is over or used; None if it is not genuine."""
        data = _decoded(token)
        if data is None:
            return None
        body, signature = data[:-SIGNATURE], data[-SIGNATURE:]
        key_id = body[1:9]
        key = self._keys.get(key_id, NOBODYS_KEY)
        if not hmac.compare_digest(self._sign(key, body), signature) or key_id not in self._keys:
            return None
        return _parsed(body)

    def _own_key(self) -> bytes:
        if self._signing is None:
            raise ConfigurationError("tokens need a key to be signed with: set Settings.hmac_keys")
        return self._signing

    def _seal(self, key_id: bytes, grant: Grant) -> str:
        parts = [HEAD.pack(VERSION, key_id, grant.expires, grant.nonce)]
        for name in (grant.workflow_id.encode(), grant.topic.encode()):
            parts += LENGTH.pack(len(name)), name
        body = b"".join(parts)
        return _encoded(body + self._sign(self._keys[key_id], body))

    def _sign(self, key: bytes, body: bytes) -> bytes:
        return hmac.digest(key, self._domain + body, "sha256")


def _key_id(key: bytes) -> bytes:
    """The name of a key, from which nothing can be learned of it."""
    return hashlib.sha256(b"holdfast key id\0" + key).digest()[:8]


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(token: str) -> bytes | None:
    """The bytes of a token; None if it cannot be one, or is not as it was written."""
    if not isinstance(token, str) or len(token) > MOST_CHARACTERS or not token.isascii():
        return None
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return None
    # Other characters are skipped, and the bits that are left over ignored: only one way of writing counts.
    if len(data) < HEAD.size + 2 * LENGTH.size + SIGNATURE or _encoded(data) != token:
        return None
    return data


def _parsed(body: bytes) -> Grant | None:
    """What was signed; None of a version that this library does not know."""
    version, _, expires, nonce = HEAD.unpack_from(body)
    if version != VERSION:
        return None
    names = []
    place = HEAD.size
    for _ in range(2):
        (length,) = LENGTH.unpack_from(body, place)
        place += LENGTH.size + length
        names.append(body[place - length : place].decode())
    return Grant(names[0], names[1], nonce, expires)
