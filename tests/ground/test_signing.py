"""Signed payloads: nobody who can only write to the database can make one."""

from __future__ import annotations

import msgspec
import pytest

from holdfast._codec import Codec, Signed
from holdfast.errors import ConfigurationError, PayloadDecodeError
from holdfast.types import PayloadContext

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="message", name="t")
OLD, NEW = b"o" * 16, b"n" * 16


class Reversed:
    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        return data[::-1]

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        return data[::-1]


def codec(*keys: bytes) -> Codec:
    return Codec("holdfast", 1000, Signed(keys, Reversed()))


def test_k3_signed_payloads_come_back_and_keys_can_be_changed() -> None:
    data = codec(OLD).encode([1, 2], CONTEXT)
    assert data.endswith(b"]2,1[")
    assert codec(NEW, OLD).decode(data, list[int], CONTEXT) == [1, 2]


@pytest.mark.parametrize("change", ["workflow_id", "kind", "name", "schema"])
def test_k3_a_signature_holds_for_one_place_only(change: str) -> None:
    data = codec(OLD).encode("a", CONTEXT)
    with pytest.raises(PayloadDecodeError, match="signature"):
        codec(OLD).decode(data, str, msgspec.structs.replace(CONTEXT, **{change: "other"}))


@pytest.mark.parametrize("data", [b"", b'"a"', b"\0" * 32 + b'"a"'])
def test_k3_what_is_not_signed_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadDecodeError, match="signature"):
        codec(OLD).decode(data, str, CONTEXT)


def test_k3_another_key_does_not_verify() -> None:
    with pytest.raises(PayloadDecodeError, match="signature"):
        codec(NEW).decode(codec(OLD).encode("a", CONTEXT), str, CONTEXT)


def test_signing_needs_a_key() -> None:
    with pytest.raises(ConfigurationError):
        Signed([])
