"""Values to bytes and back: what round-trips, what is refused, and what errors do not tell."""

from __future__ import annotations

import datetime as dt
import enum
import math
import subprocess
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast._codec import Codec
from holdfast.errors import ConfigurationError, PayloadDecodeError, PayloadNotSerializable, PayloadTooLarge
from holdfast.types import PayloadContext

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="message", name="t")
CODEC = Codec("holdfast", 1024 * 1024)

PYDANTIC = tuple(map(int, pydantic.VERSION.split(".")[:2]))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FINITE | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Number(int):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    verbose: bool


@dataclass
class Line:
    price: Decimal
    tags: set[str] = field(default_factory=set)


@attrs.define
class Box:
    size: tuple[int, int]
    line: Line | None = None


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    amount: Decimal


class Order(pydantic.BaseModel):
    id: int
    note: str | None = None
    rate: float = 1.0


class Refund(pydantic.BaseModel):
    of: int


class Renamed(pydantic.BaseModel):
    value: int = pydantic.Field(validation_alias="in", serialization_alias="out")


class Root(pydantic.RootModel[list[int]]):
    pass


class Mixed(msgspec.Struct):
    order: Order
    more: list[Refund] = []


@dataclass
class Either:
    what: Order | Refund
    data: bytes


class Opaque:
    def __repr__(self) -> str:
        return "hunter2"


class Picky(msgspec.Struct):
    word: str

    def __post_init__(self) -> None:
        if self.word == "hunter2":
            raise ValueError(f"{self.word} is refused")


class UpperCase(str):
    __slots__ = ()


NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (None, None),
    (b"\x00\xff", bytes),
    (bytearray(b"\xff"), bytearray),
    (NOW, dt.datetime),
    (NOW.date(), dt.date),
    (dt.time(1, 2, 3), dt.time),
    (dt.timedelta(days=1, microseconds=3), dt.timedelta),
    (Decimal("1.10"), Decimal),
    (UUID(int=7), UUID),
    (2**80, int),
    (Colour.RED, Colour),
    (Point(1, 2), Point),
    ({"verbose": True}, Options),
    (Line(Decimal("0.1"), {"a"}), Line),
    (Box((1, 2), Line(Decimal(3))), Box),
    ((1, "a"), tuple[int, str]),
    ({1, 2}, set[int]),
    (frozenset({"a"}), frozenset[str]),
    ({1: "a"}, dict[int, str]),
    ({Colour.RED: 1}, dict[Colour, int]),
    ({NOW.date(): b"x"}, dict[dt.date, bytes]),
    (Card("4242"), Card | Cash),
    ([Cash(Decimal("1.5")), Card("1")], list[Card | Cash]),
    (Order(id=1), Order),
    (None, Order | None),
    ([Order(id=1, note="x")], list[Order]),
    ({"a": Order(id=1)}, dict[str, Order]),
    (Mixed(order=Order(id=1), more=[Refund(of=2)]), Mixed),
    (Refund(of=1), Order | Refund),
    ([Order(id=1), Refund(of=1)], list[Order | Refund]),
    (b"\xfb\xff", Order | bytes),
    (Either(Refund(of=1), b"\xfb\xff"), Either),
    (Root([1, 2]), Root),
    (3, Annotated[int, msgspec.Meta(gt=2, extra={"unhashable": []})]),
    ("a", Literal["a", "b"]),
]


def there_and_back(value: object, type: object = Any, codec: Codec = CODEC) -> Any:  # noqa: ANN401
    return codec.decode(codec.encode(value, CONTEXT), type, CONTEXT)


@pytest.mark.parametrize(("value", "type"), ROUND_TRIPS, ids=lambda each: str(each)[:40])
def test_k2_a_value_comes_back_as_its_type(value: object, type: object) -> None:
    CODEC.check_type(type)
    for _ in range(2):
        back = there_and_back(value, type)
        assert back == value
        assert back.__class__ is value.__class__


@given(value=JSON)
def test_k2_json_comes_back_as_it_was(value: object) -> None:
    assert there_and_back(value) == value
    assert there_and_back(value, object) == value


@pytest.mark.skipif(PYDANTIC < (2, 10), reason="HttpUrl is an annotation in this pydantic")
def test_k2_a_type_of_pydantics_comes_back() -> None:
    url = pydantic.HttpUrl("https://example.org/a")
    assert there_and_back({"a": url}, dict[str, pydantic.HttpUrl]) == {"a": url}


@pytest.mark.skipif(PYDANTIC < (2, 11), reason="this pydantic reads by alias only")
def test_k2_a_model_whose_aliases_differ_comes_back() -> None:
    value = Renamed.model_validate({"in": 3})
    assert there_and_back(value, Renamed) == value
    assert CODEC.decode(b'{"in":3}', Renamed, CONTEXT) == value


def test_k2_subclasses_of_plain_types_are_stored_as_the_plain_type() -> None:
    assert there_and_back([UpperCase("A"), OrderedDict(a=1), Number(2)]) == [
        "A",
        {"a": 1},
        2,
    ]


class Float(float):
    pass


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda bad: bad, "$"),
        (lambda bad: {"items": [1, None, {"price": bad}]}, "$.items[2].price"),
        (lambda bad: [0.5, (1, bad)], "$[1][1]"),
        (lambda bad: {"not an identifier, perhaps hunter2": bad}, "$[...]"),
        (lambda bad: {1.5: 2, bad: 3}, "$"),
        (lambda bad: {bad}, "$[...]"),
        (lambda bad: Order(id=1, rate=bad), "$.rate"),
        (lambda bad: [Mixed(order=Order(id=1, rate=bad))], "$[0].order.rate"),
        (lambda bad: Box((1, bad)), "$.size[1]"),
        (lambda bad: {"a": Line(bad)}, "$.a.price"),
        (lambda bad: Float(bad), "$"),
        (lambda bad: OrderedDict(a=bad), "$.a"),
    ],
)
def test_k2_nan_and_infinities_are_refused(bad: float, wrap: Callable[[float], object], path: str) -> None:
    with pytest.raises(PayloadNotSerializable, match="NaN and infinities") as caught:
        CODEC.encode(wrap(bad), CONTEXT)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "value", [None, [None, 1.0], "null", {"null": "nan"}, Order(id=1), Decimal("NaN"), {"nan": 1}]
)
def test_k2_null_is_no_nan(value: object) -> None:
    assert CODEC.encode(value, CONTEXT)


@given(
    value=st.recursive(
        st.none() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner)
    )
)
def test_k2_no_nan_slips_through(value: object) -> None:
    def holds(part: object) -> bool:
        if isinstance(part, dict):
            return any(map(holds, part.values()))
        return (
            any(map(holds, part))
            if isinstance(part, list)
            else isinstance(part, float) and not math.isfinite(part)
        )

    if holds(value):
        with pytest.raises(PayloadNotSerializable):
            CODEC.encode(value, CONTEXT)
    else:
        assert there_and_back(value) == value


def looped() -> object:
    loop: list[object] = []
    loop.append(loop)
    return loop


async def forgotten() -> None: ...


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (Opaque(), "$", "value of type `.*Opaque`"),
        ({"items": [1, {"price": Opaque()}]}, "$.items[1].price", "Opaque"),
        (Line(Opaque()), "$.price", "Opaque"),  # type: ignore[arg-type]
        (Mixed(order=Opaque()), "$.order", "Opaque"),  # type: ignore[arg-type]
        (Box((1, Opaque())), "$.size[1]", "Opaque"),  # type: ignore[arg-type]
        ([{1, Opaque}], "$[0][...]", "type"),
        ({(1, 2): 3}, "$", "as a dict key, a value of type `tuple`"),
        ({"a": {None: 3}}, "$.a", "as a dict key"),
        (["hunter2\ud800"], "$[0]", "lone surrogate"),
        ({"hunter2\ud800": 1}, "$", "as a dict key, a string that holds a lone surrogate"),
        ([1, complex(1, 2)], "$[1]", "complex"),
        (looped(), "$", "contains itself"),
        ([10**5000], "$[0]", "an integer this large"),
        (enum.Enum("Odd", {"a": Opaque()}).a, "$.value", "Opaque"),  # type: ignore[attr-defined]
        (iter([1]), "$", "list_iterator"),
    ],
)
def test_k2_what_cannot_be_json_is_refused_with_its_path(value: object, path: str, reason: str) -> None:
    with pytest.raises(PayloadNotSerializable, match=reason) as caught:
        CODEC.encode(value, CONTEXT)
    assert caught.value.path == path
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_k2_a_forgotten_await_is_named() -> None:
    coroutine = forgotten()
    with pytest.raises(PayloadNotSerializable, match="is there an `await` missing"):
        CODEC.encode({"a": coroutine}, CONTEXT)
    coroutine.close()


def test_k2_a_model_that_has_no_json_is_refused() -> None:
    class Blob(pydantic.BaseModel):
        data: bytes

    with pytest.raises(PayloadNotSerializable, match=r"pydantic cannot turn a `.*Blob` into JSON") as caught:
        CODEC.encode([Blob(data=b"\xff")], CONTEXT)
    assert caught.value.path == "$[0]"


def test_k2_the_limit_is_in_bytes_of_json() -> None:
    codec = Codec("holdfast", 10)
    assert codec.encode("x" * 8, CONTEXT)
    with pytest.raises(PayloadTooLarge, match="11 bytes is over the limit of 10") as caught:
        codec.encode("x" * 9, CONTEXT)
    assert (caught.value.size, caught.value.limit) == (11, 10)
    with pytest.raises(PayloadTooLarge):
        codec.encode("ü" * 5, CONTEXT)
    with pytest.raises(PayloadTooLarge):
        codec.encode_call(("x" * 9,), {}, CONTEXT)


@pytest.mark.parametrize(
    ("data", "type", "reason", "path"),
    [
        (b'"hunter2"', int, "Expected `int`, got `str`", "$"),
        (b'[1,"hunter2"]', list[int], "Expected `int`", "$[1]"),
        (b'{"hunter2":"x"}', dict[str, int], "Expected `int`", r"$[...]"),
        (b'{"hunter2":1}', dict[int, int], "in a key", "$"),
        (b'"hunter2"', Colour, "not one of the values", "$"),
        (b'"hunter2"', Literal["a"], "not one of the values", "$"),
        (b'{"type":"hunter2"}', Card | Cash, "a tag that the type does not know", "$.type"),
        (b'"hunter2"', UUID, "Invalid UUID", "$"),
        (b'"hunter2"', dt.datetime, "Invalid RFC3339", "$"),
        (b'"hunter2"', Decimal, "Invalid decimal", "$"),
        (b"{}", Mixed, "missing required field `order`", "$"),
        (b'{"word":"hunter2"}', Picky, "refused by the type's own checks", "$"),
        (b'[{"word":"hunter2"}]', list[Picky], "refused by the type's own checks", "$[0]"),
        (b'{"id":"hunter2"}', Order, "`Order` refuses it: int_parsing", "$.id"),
        (b'[{"id":1},{"id":"hunter2"}]', list[Order], "int_parsing", "$[1].id"),
        (b'{"order":{"id":"hunter2"}}', Mixed, "int_parsing", "$.order.id"),
        (b'"hunter2"', Order | Refund, "refuses it", "$.Order"),
        (b"hunter2", Any, "JSON is malformed", "$"),
        (b"", Any, "truncated", "$"),
        (b"NaN", float, "malformed", "$"),
        (b'"\xff"', Any, "not UTF-8", "$"),
        (b"[" * 100_000, Any, "nested too deeply", "$"),
    ],
)
def test_k4_bytes_that_do_not_fit_are_refused_without_being_shown(
    data: bytes, type: object, reason: str, path: str
) -> None:
    with pytest.raises(PayloadDecodeError) as caught:
        CODEC.decode(data, type, CONTEXT)
    assert reason in str(caught.value)
    assert caught.value.path == path
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "type",
    [
        Opaque,
        list[Opaque],
        Iterable[int],
        Callable[[], int],
        complex,
        Exception,
        Order | Card,
        Line | Box,
        "Order",
    ],
    ids=str,
)
def test_a_type_that_cannot_be_read_is_refused_early(type: object) -> None:
    with pytest.raises(ConfigurationError):
        CODEC.check_type(type)


def test_nothing_is_imported_to_serve_pydantic() -> None:
    script = (
        "import sys; from holdfast._codec import Codec; from holdfast.types import PayloadContext;"
        "c = PayloadContext(schema='s', workflow_id='w', kind='k', name='n'); codec = Codec('s', 99);"
        "assert codec.decode(codec.encode({'a': None}, c), dict[str, int | None], c) == {'a': None};"
        "sys.exit('pydantic' in sys.modules or 'attrs' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class Zip:
    """Compresses, and remembers what it was told about the payload."""

    def __init__(self) -> None:
        self.seen: list[PayloadContext] = []

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        self.seen.append(context)
        return zlib.compress(data)

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        self.seen.append(context)
        return zlib.decompress(data)


def test_k3_a_payload_codec_is_applied_with_the_identity_of_the_row() -> None:
    zipped = Zip()
    codec = Codec("holdfast", 10_000, zipped)
    data = codec.encode(["x" * 5000], CONTEXT)
    assert len(data) < 100
    assert codec.decode(data, list[str], CONTEXT) == ["x" * 5000]
    assert zipped.seen == [CONTEXT, CONTEXT]


def test_k3_the_limit_is_checked_before_compression() -> None:
    with pytest.raises(PayloadTooLarge):
        Codec("holdfast", 100, Zip()).encode("x" * 5000, CONTEXT)


def test_k3_bytes_that_the_payload_codec_cannot_read_are_a_decode_error() -> None:
    with pytest.raises(PayloadDecodeError, match="payload codec `Zip` cannot decode") as caught:
        Codec("holdfast", 100, Zip()).decode(b"plain", str, CONTEXT)
    assert isinstance(caught.value.__cause__, zlib.error)


def test_k3_a_payload_codec_that_returns_text_is_a_mistake_in_the_settings() -> None:
    class Wrong(Zip):
        def encode(self, data: bytes, context: PayloadContext) -> bytes:
            return data.decode()  # type: ignore[return-value]

    with pytest.raises(ConfigurationError, match="must return bytes, not str"):
        Codec("holdfast", 100, Wrong()).encode(1, CONTEXT)
