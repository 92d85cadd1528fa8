"""What msgspec would lose of a value without a word is kept, or refused [K2]."""

from __future__ import annotations

import enum
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast._codec import Codec
from holdfast._codec.survey import MOST_NESTED, whole
from holdfast.errors import PayloadDecodeError, PayloadNotSerializable
from holdfast.types import PayloadContext

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="message", name="t")
CODEC = Codec("holdfast", 16 * 1024 * 1024)
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


@attrs.define
class Private:
    _secret: int
    open: int = attrs.field(default=3, converter=int)


@dataclass
class Hidden:
    _hidden: int = 1
    inner: Private | None = None


@dataclass(frozen=True, slots=True)
class Slotted:
    _hidden: int
    rest: tuple[int, ...] = ()


@attrs.frozen
class Generically(Generic[T]):
    _held: T


@dataclass
class Tree:
    value: Any = None
    children: list[Tree] = field(default_factory=list)


@dataclass
class Unresolved:
    what: Nowhere  # type: ignore[name-defined] # noqa: F821


class Tagged(msgspec.Struct, tag="t", rename="camel", frozen=True):
    my_private: Private
    my_list: list[Any] = []


class Listed(msgspec.Struct, array_like=True):
    private: Private


class Named(NamedTuple):
    private: Private


HIDING: list[tuple[Any, Any]] = [
    (Private(7), Private),
    (Hidden(5), Hidden),
    (Hidden(5, Private(7, 8)), Hidden),
    (Slotted(5, (1, 2)), Slotted),
    (Generically(3), Generically[int]),
    (Generically(Private(3)), Generically[Private]),
    ([Private(1), Private(2)], list[Private]),
    ({"a": (Private(1),)}, dict[str, tuple[Private, ...]]),
    (Tree(children=[Tree(), Tree()]), Tree),
    (Tagged(Private(7)), Tagged),
    (Listed(Private(7)), Listed),
    (Named(Private(7)), Named),
    ([[[Private(7)]]], list[list[list[Private]]]),
]


@pytest.mark.parametrize(("value", "type"), HIDING, ids=lambda each: str(each)[:40])
def test_k2_private_fields_come_back(value: object, type: object) -> None:
    before = repr(value)
    for _ in range(2):
        assert CODEC.decode(CODEC.encode(value, CONTEXT), type, CONTEXT) == value
    assert repr(value) == before


def test_k2_a_private_field_in_a_place_of_any_type_is_there_too() -> None:
    value = Tree(value={"deep": [Private(7)]})
    back = CODEC.decode(CODEC.encode(value, CONTEXT), Tree, CONTEXT)
    assert back.value == {"deep": [{"_secret": 7, "open": 3}]}


def test_a_value_in_which_nothing_is_missing_is_not_copied() -> None:
    for value in (3, [1, [2]], {"a": {"b": (1,)}}, Tree(children=[Tree()]), Model(), Colour.RED):
        assert whole(value) is value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1: "a", "1": "b"}, "$"),
        ({"a": [{Colour.RED: 1, "red": 2}]}, "$.a[0]"),
        ({uuid.UUID(int=1): 1, str(uuid.UUID(int=1)): 2}, "$"),
        (OrderedDict({1: 1, "1": 2}), "$"),
        (Tree(value={1: 1, "1": 2}), "$.value"),
        ([Tagged(Private(1), [{1: 1, "1": 2}])], "$[0].my_list[0]"),
    ],
)
def test_k2_keys_that_are_one_key_in_json_are_refused(value: object, path: str) -> None:
    with pytest.raises(PayloadNotSerializable, match="two keys of the dict are the same key") as caught:
        CODEC.encode(value, CONTEXT)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "value", [{1: 1, "2": 2}, {1: 1, 2: 2}, {Colour.RED: 1, "blue": 2}, {True: 1}, {1.5: 1, 2: 2}]
)
def test_k2_keys_of_several_kinds_are_fine_while_they_differ(value: dict[Any, Any]) -> None:
    assert len(CODEC.decode(CODEC.encode(value, CONTEXT), dict[str, int], CONTEXT)) == len(value)


def nested_list(depth: int) -> object:
    return [nested_list(depth - 1)] if depth else 1


def nested_dict(depth: int) -> object:
    return {"a": nested_dict(depth - 1)} if depth else 1


def nested_tree(depth: int) -> object:
    return Tree(children=[nested_tree(depth - 2)]) if depth > 1 else 1  # type: ignore[list-item]


class Model(pydantic.BaseModel):
    inner: Any = None


def looped(value: Any, put: Callable[[Any], object]) -> object:  # noqa: ANN401
    put(value)
    return value


LOOP: list[Any] = []
TWICE: list[Any] = []
RING: dict[str, Any] = {}


@pytest.mark.parametrize(
    "value",
    [
        nested_list(MOST_NESTED + 3),
        nested_dict(MOST_NESTED + 3),
        nested_tree(MOST_NESTED + 4),
        looped(LOOP, LOOP.append),
        looped(TWICE, lambda each: TWICE.extend([each, each])),
        looped(RING, lambda each: RING.update(a=each)),
        looped(Tree(), lambda each: each.children.append(each)),
        looped(Model(), lambda each: setattr(each, "inner", each)),
    ],
    ids=["list", "dict", "tree", "loop", "two loops", "ring", "loop of trees", "loop of models"],
)
def test_k2_what_is_nested_too_deeply_is_refused(value: object) -> None:
    with pytest.raises(PayloadNotSerializable):
        CODEC.encode(value, CONTEXT)


def from_deep_down(frames: int, act: Callable[[], Any]) -> Any:  # noqa: ANN401
    return act() if not frames else from_deep_down(frames - 1, act)


@pytest.mark.parametrize("make", [nested_list, nested_dict, nested_tree])
def test_k2_what_is_accepted_can_be_read_back_from_deep_in_a_stack(make: Callable[[int], object]) -> None:
    value = make(MOST_NESTED - 1)
    data = CODEC.encode(value, CONTEXT)
    back = from_deep_down(500, lambda: CODEC.decode(data, Any, CONTEXT))
    assert CODEC.encode(back, CONTEXT) == data
    assert CODEC.encode(CODEC.decode(data, Model if isinstance(back, str) else Any, CONTEXT), CONTEXT) == data


class Account(pydantic.BaseModel):
    password: pydantic.SecretStr
    note: str = "**********"


class Revealing(pydantic.BaseModel):
    password: pydantic.SecretStr

    @pydantic.field_serializer("password", when_used="json")
    def reveal(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (pydantic.SecretStr("hunter2"), "$"),
        (Account(password=pydantic.SecretStr("hunter2")), "$.password"),
        ({"a": [Account(password=pydantic.SecretStr("hunter2"))]}, "$.a[0].password"),
        (Model(inner={"b": pydantic.SecretBytes(b"hunter2")}), "$.inner.b"),
        (Tree(value=pydantic.SecretStr("hunter2")), "$.value"),
    ],
)
def test_k2_a_secret_that_pydantic_masks_is_not_lost_silently(value: object, path: str) -> None:
    with pytest.raises(PayloadNotSerializable, match="masks a `Secret") as caught:
        CODEC.encode(value, CONTEXT)
    assert caught.value.path == path
    assert "hunter2" not in str(caught.value)


def test_k2_a_secret_that_reveals_itself_comes_back() -> None:
    value = Revealing(password=pydantic.SecretStr("hunter2"))
    assert CODEC.decode(CODEC.encode(value, CONTEXT), Revealing, CONTEXT) == value
    assert CODEC.encode("**********", CONTEXT)


# Anything at all

KEYS = st.text() | st.integers() | st.booleans() | st.floats() | st.none() | st.dates() | st.uuids()
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(4400).map(lambda digits: 10**digits)
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.timedeltas()
    | st.times()
    | st.complex_numbers()
    | st.builds(object)
    | st.sampled_from([Colour.RED, Colour, Ellipsis, len, Model(), pydantic.SecretStr("x")])
    | st.just("ring").map(lambda _: RING),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner)
        | st.builds(Tree, inner)
        | st.builds(Private, inner)
        | st.builds(lambda part: Model(inner=part), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=ANYTHING)
def test_k2_whatever_is_given_is_stored_or_refused(value: object) -> None:
    try:
        data = CODEC.encode(value, CONTEXT)
    except PayloadNotSerializable:
        return
    CODEC.decode(data, Any, CONTEXT)


TYPES: list[Any] = [
    Any,
    int,
    float,
    str,
    bytes,
    bool,
    None,
    *(Colour, Private, Hidden, Tree, Tagged, Named, Model, Account, list[Model], dict[str, Model]),
    *(dict[int, Any], dict[uuid.UUID, float], tuple[int, str], set[int], Private | None, Model | bytes),
]
SCRAPS = st.sampled_from(
    [*b'[]{}",:0123456789.eE+-\\ \n', *b"\x00\xff\xd8\xc3", *map(ord, "truefalsn_hidINfty")]
).map(lambda each: bytes([each]))


@settings(deadline=None)
@given(
    data=st.binary()
    | st.lists(SCRAPS).map(b"".join)
    | ANYTHING.map(lambda value: encoded_or_nothing(value)[:50])
    | st.builds(
        lambda text, times: text * times, st.sampled_from([b"[", b'{"a":', b"1", b"-9"]), st.integers(0, 9999)
    ),
    type=st.sampled_from(TYPES),
)
def test_k2_whatever_is_stored_is_read_or_refused(data: bytes, type: Any) -> None:  # noqa: ANN401
    try:
        CODEC.decode(data, type, CONTEXT)
    except PayloadDecodeError:
        pass


def encoded_or_nothing(value: object) -> bytes:
    try:
        return CODEC.encode(value, CONTEXT)
    except PayloadNotSerializable:
        return b""
