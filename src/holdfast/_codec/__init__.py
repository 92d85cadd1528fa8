"""Every payload is encoded and decoded in this room: values, calls, errors [K2].

`codec` is the door. Behind it: `payloads` (values to JSON and back), `calls` (arguments), `failures` with
`contents` (exceptions), `replies` (to requests), `models` (pydantic, without importing it), `survey` (what
msgspec would lose of a value), `unions` (whether types can be told apart), `attributes` (JSON that is
searched) and `paths` (where in a value something is wrong).
Nothing here does I/O, keeps rows or imports by name.
"""

from holdfast._codec.attributes import decode_attributes, encode_attributes
from holdfast._codec.calls import Parameters, names_of_caller
from holdfast._codec.codec import Codec
from holdfast._codec.failures import ErrorRegistry
from holdfast._codec.payloads import check_type

__all__ = [
    "Codec",
    "ErrorRegistry",
    "Parameters",
    "check_type",
    "decode_attributes",
    "encode_attributes",
    "names_of_caller",
]
