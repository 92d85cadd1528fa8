"""Attributes of workflows: a JSON object that the database can search, so no payload, and under no codec.

Checked to the last character before it is queued: what jsonb does not take must not reach a batch.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from holdfast._codec import payloads
from holdfast.errors import PayloadNotSerializable, PayloadTooLarge

__all__ = ["MAX_ATTRIBUTES", "decode_attributes", "encode_attributes"]

MAX_ATTRIBUTES: Final = 16 * 1024
"""Bytes of JSON that the attributes of a workflow may take: every path in them goes into an index."""

MAX_DEPTH: Final = 64


def encode_attributes(attributes: Mapping[str, Any]) -> str:
    """The JSON of attributes, or of a question for some.

    Raises:
        PayloadNotSerializable: if they are no mapping of strings to what can be JSON, or hold NUL.
        PayloadTooLarge: if they take more than 16 KiB.
    """
    if not isinstance(attributes, Mapping) or not all(isinstance(key, str) for key in attributes):
        raise PayloadNotSerializable("attributes are a mapping of strings to values")
    data = payloads.encode(dict(attributes))
    if len(data) > MAX_ATTRIBUTES:
        error = PayloadTooLarge(len(data), MAX_ATTRIBUTES)
        error.add_note("attributes are for searching; they have this limit whatever Settings.max_payload is")
        raise error
    _check(msgspec.json.decode(data), "$", MAX_DEPTH)
    return data.decode()


_from_json: Final = msgspec.json.Decoder(dict[str, Any]).decode


def decode_attributes(text: str) -> dict[str, Any]:
    """Attributes as the database gives them."""
    return _from_json(text)


def _check(value: object, path: str, depth: int) -> None:
    """Is this what jsonb takes? It has no NUL, and no end of numbers and nesting."""
    if depth == 0:
        raise PayloadNotSerializable("attributes are nested too deeply", path)
    if isinstance(value, str) and "\0" in value:
        raise PayloadNotSerializable("attributes must not hold the character NUL (\\x00)", path)
    if isinstance(value, dict):
        for key, part in value.items():
            if "\0" in key:
                raise PayloadNotSerializable("attributes must not hold the character NUL (\\x00)", path)
            _check(part, f"{path}.{key}", depth - 1)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            _check(part, f"{path}[{place}]", depth - 1)
