"""A reply is one envelope: a value of its type, or the error with which the request was rejected."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from holdfast import errors
from holdfast._codec import Codec, ErrorRegistry
from holdfast.types import PayloadContext

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="reply", name="price")
CODEC = Codec("holdfast", 100)
REGISTRY = ErrorRegistry()


@dataclass
class Price:
    amount: int
    currency: str = "EUR"


def through(value: object, type: object) -> object:
    return CODEC.decode_reply(CODEC.encode_reply(value, CONTEXT), type, CONTEXT, REGISTRY)


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (Price(3), Price),
        (None, Any),
        (None, None),
        ({"error": {"type": "ValueError"}}, Any),
        ({"value": 1}, dict[str, int]),
        (b"\0\xff", bytes),
        ("é\U0001f600", str),
    ],
)
def test_a_value_comes_back_as_its_type(value: object, type: object) -> None:
    assert through(value, type) == value


def test_a_reply_is_json() -> None:
    assert json.loads(CODEC.encode_reply([1, None], CONTEXT)) == {"value": [1, None]}
    assert json.loads(CODEC.encode_rejection(ValueError("no"), CONTEXT))["error"]["type"] == "ValueError"


def test_a_rejection_is_raised_with_its_remote_traceback() -> None:
    try:
        raise LookupError("none left") from OSError("shelf")
    except LookupError as error:
        stored = CODEC.encode_rejection(error, CONTEXT)
    with pytest.raises(LookupError, match="none left") as caught:
        CODEC.decode_reply(stored, int, CONTEXT, REGISTRY)
    assert isinstance(caught.value.__cause__, OSError)
    assert "Remote traceback" in caught.value.__notes__[0]
    rejected = CODEC.encode_rejection(errors.RequestRejected("not today"), CONTEXT)
    with pytest.raises(errors.RequestRejected, match="not today"):
        CODEC.decode_reply(rejected, int, CONTEXT, REGISTRY)


def test_what_does_not_fit_is_a_decode_error() -> None:
    for stored in (CODEC.encode_reply("three", CONTEXT), b"[1]", b"{", b'{"error": 3}'):
        with pytest.raises(errors.PayloadDecodeError):
            CODEC.decode_reply(stored, int, CONTEXT, REGISTRY)


def test_k2_a_reply_is_as_limited_as_any_payload() -> None:
    CODEC.encode_reply("x" * 98, CONTEXT)
    with pytest.raises(errors.PayloadTooLarge):
        CODEC.encode_reply("x" * 99, CONTEXT)
    with pytest.raises(errors.PayloadNotSerializable):
        CODEC.encode_reply(float("nan"), CONTEXT)
