"""Names are checked and built here and nowhere else: ids, keys of waiters, the channel's name [K1].

A key is the same in Python and in SQL (`holdfast.wake_key`), so that a plain SQL `send` rings the same bell.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from hashlib import sha256
from typing import Final

from holdfast import _clock
from holdfast.errors import InvalidName

__all__ = [
    "MAX_ID",
    "MAX_NAME",
    "channel",
    "check_name",
    "check_text",
    "check_workflow_id",
    "child_id",
    "new_request",
    "new_workflow_id",
    "reply_key",
    "token_key",
    "wake_key",
]

MAX_ID: Final = 512
"""Bytes of UTF-8 that a workflow id may take."""

MAX_NAME: Final = 256
"""Bytes of UTF-8 that a topic, key, stream name, dedup key or definition's name may take."""

RESERVED: Final = "::"
"""What names of the library's own begin with, and no others."""


def check_workflow_id(workflow_id: str) -> str:
    """Return the id as a plain `str` if it may be one.

    Raises:
        InvalidName: if it is no string, empty, longer than 512 bytes, or holds NUL or a lone surrogate.
    """
    return _check(workflow_id, "workflow id", MAX_ID)


def check_name(name: str, what: str) -> str:
    """Return the name as a plain `str` if it may be one; `what` ("topic", "stream", ...) goes into the error.

    Raises:
        InvalidName: if it is no string, empty, longer than 256 bytes, holds NUL or a lone surrogate, or
            begins with `::`, as only the library's own names do.
    """
    checked = _check(name, what, MAX_NAME)
    if checked.startswith(RESERVED):
        raise InvalidName(f"{what} must not begin with {RESERVED!r}: such names are the library's own")
    return checked


def check_text(text: str | None, what: str) -> str | None:
    """Return a text that is only compared with names, of any length.

    Raises:
        InvalidName: if it is no string, or holds NUL or a lone surrogate.
    """
    return text if text is None or text == "" else _check(text, what, sys.maxsize)


def _check(name: str, what: str, limit: int) -> str:
    if type(name) is str and 0 < len(name) <= limit and name.isascii() and "\0" not in name:
        return name
    return _check_slowly(name, what, limit)


def _check_slowly(name: object, what: str, limit: int) -> str:
    if not isinstance(name, str):
        raise InvalidName(f"{what} must be a str, not {type(name).__qualname__}; pass str(...) of it")
    plain = str.__str__(name)
    if not plain:
        raise InvalidName(f"{what} must not be empty")
    if "\0" in plain:
        raise InvalidName(f"{what} must not hold the character NUL (\\x00): {_shortened(plain)}")
    size = _utf8_size(plain, what)
    if size > limit:
        raise InvalidName(f"{what} takes {size} bytes of UTF-8, more than {limit}: {_shortened(plain)}")
    return plain


def _utf8_size(name: str, what: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(
            f"{what} holds a lone surrogate, which is no character: {_shortened(name)}"
        ) from None


def _shortened(name: str) -> str:
    return ascii(name) if len(name) <= 40 else f"{name[:40]!a}..."


@lru_cache(maxsize=8192)
def wake_key(kind: str, workflow_id: str, name: str = "") -> str:
    """The 16 hex digits under which waiters of one thing register and bells ring [N3].

    Kinds: "message" (name is the topic, "" for none), "event" (key), "stream" (name), "end" (""), and, with
    another id in place of the workflow's, "work" (a workflow's name) and "executor" (`str` of its number).
    """
    first, second, third = kind.encode(), workflow_id.encode(), name.encode()
    parts = (
        len(first).to_bytes(4),
        first,
        len(second).to_bytes(4),
        second,
        len(third).to_bytes(4),
        third,
    )
    return sha256(b"".join(parts)).hexdigest()[:16]


def channel(schema: str) -> str:
    """The channel that a schema's bells ring on: one per schema, hashed to fit LISTEN's 63 bytes."""
    return f"holdfast_{sha256(schema.encode()).hexdigest()[:16]}"


def child_id(parent: str, step_id: str) -> str:
    """The id of the child that the durable call `step_id` of `parent` starts, unless it is given one [W8].

    Raises:
        InvalidName: if it would be longer than an id may be.
    """
    made = f"{parent}/{step_id}"
    if len(made) <= MAX_ID and made.isascii():
        return made
    if _utf8_size(made, "workflow id") > MAX_ID:
        raise InvalidName(
            f"the id of this child would be longer than {MAX_ID} bytes: start it with an id= of its own"
        )
    return made


def new_workflow_id() -> str:
    """A fresh id: a UUID of version 7, so that ids made one after another lie together in the index."""
    milliseconds, rest = divmod(_clock.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    digits = f"{milliseconds & 0xFFFFFFFFFFFF:012x}7{fraction:03x}{_variant_bits():016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_request() -> str:
    """A fresh id for a request, which its message carries and its reply is found by."""
    return os.urandom(16).hex()


def reply_key(request: str) -> str:
    """The key of the event with which a workflow replies to a request."""
    return f"{RESERVED}reply:{request}"


def token_key(nonce: bytes) -> str:
    """The dedup key of the message that a token sends."""
    return f"{RESERVED}token:{nonce.hex()}"


def _variant_bits() -> int:
    return int.from_bytes(os.urandom(8)) & 0x3FFFFFFFFFFFFFFF | 0x8000000000000000
