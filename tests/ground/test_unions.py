"""Unions whose members cannot be told apart by their JSON are refused early, with advice [K2]."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from holdfast._codec import Codec
from holdfast.errors import ConfigurationError
from holdfast.types import PayloadContext

CONTEXT = PayloadContext(schema="holdfast", workflow_id="w", kind="message", name="t")
CODEC = Codec("holdfast", 1024 * 1024)


class Colour(enum.Enum):
    RED = "red"


class Card(pydantic.BaseModel):
    number: str
    name: str | None = None


class Cash(pydantic.BaseModel):
    amount: Decimal


class Same(pydantic.BaseModel):
    number: str
    name: str | None = None


class More(pydantic.BaseModel):
    number: str
    name: str | None = None
    more: int = 0


class Lax(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    number: str


class Empty(pydantic.BaseModel):
    pass


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


class Numbers(pydantic.RootModel[list[int]]):
    pass


@dataclass
class Pig:
    weight: float
    kind: Literal["pig"] = "pig"


@dataclass
class Sow:
    weight: float


@dataclass
class Pen:
    animal: Cat | Dog | None
    where: Card | Cash


@dataclass
class BadPen:
    card: Card | Same


@attrs.define
class Hen:
    eggs: int


class Bird(msgspec.Struct):
    wings: int


class Fish(msgspec.Struct):
    fins: int


class One(msgspec.Struct, tag=True):
    a: int


class Two(msgspec.Struct, tag=True):
    a: int


Account = NewType("Account", str)

TOLD_APART: list[tuple[Any, list[Any]]] = [
    (Card | Cash, [Card(number="1"), Cash(amount=Decimal("1.50"))]),
    (Cat | Dog, [Cat(), Dog()]),
    (Cat | Dog | None, [Cat(), Dog(), None]),
    (Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], [Cat(), Dog()]),
    (list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]], [[Cat(), Dog()]]),
    (dict[str, Cat | Dog], [{"a": Dog()}]),
    (Cat | Pig, [Cat(), Pig(1.5)]),
    (Empty | Card, [Empty(), Card(number="1")]),
    (Card | Sow, [Card(number="1"), Sow(2.5)]),
    (Cash | str, [Cash(amount=Decimal(1)), "text"]),
    (Cash | int | float | bool, [Cash(amount=Decimal(1)), 1, 1.5, True]),
    (Cash | list[int], [Cash(amount=Decimal(1)), [1]]),
    (Numbers | Cash, [Numbers([1]), Cash(amount=Decimal(1))]),
    (Cash | Colour, [Cash(amount=Decimal(1)), Colour.RED]),
    (Cash | Literal["a", "b"], [Cash(amount=Decimal(1)), "a"]),
    (Pen, [Pen(Dog(), Cash(amount=Decimal(1))), Pen(None, Card(number="1"))]),
    (One | Two, [One(1), Two(1)]),
    (dt.datetime | int | None, [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), 1, None]),
    (Decimal | int, [Decimal("1.5"), 1]),
]


@pytest.mark.parametrize(("type", "values"), TOLD_APART, ids=lambda each: str(each)[:60])
def test_k2_members_that_differ_come_back_as_what_they_were(type: object, values: list[Any]) -> None:
    for value in values:
        back = CODEC.decode(CODEC.encode(value, CONTEXT), type, CONTEXT)
        assert back == value
        assert back.__class__ is value.__class__


@pytest.mark.parametrize(
    "type",
    [
        Card | Same,
        More | Card,
        Card | More,
        Card | Lax,
        Lax | Card,
        list[Card | Same],
        BadPen,
        Card | dict[str, str],
        Card | TypedDict("Typed", {"number": str}),  # type: ignore[operator]
        Cash | str | bytes,
        Cash | dt.datetime | str,
        Cash | Account | bytes,
        Cash | Colour | str,
        Cash | Literal["red"] | Colour,
        Cash | list[int] | tuple[int, ...],
        Cash | Numbers | set[int],
        Card | Hen,
        Card | Bird,
        Pig | Sow,
        Sow | Hen,
        Bird | Fish,
        dt.datetime | str,
        str | bytes,
        list[int] | set[int],
        Colour | str,
    ],
    ids=lambda each: str(each).replace(f"{__name__}.", "")[:60],
)
def test_k2_members_that_may_be_taken_for_each_other_are_refused_with_advice(type: object) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be stored: .*(tag=True|no schema|not supported)"):
        CODEC.check_type(type)


@pytest.mark.parametrize("type", [dict[int | str, int], dict[bool, int], list[dict[str | None, int]]])
def test_k2_keys_that_cannot_be_told_apart_are_refused(type: object) -> None:
    with pytest.raises(ConfigurationError, match="the keys of a dict are text in JSON"):
        CODEC.check_type(type)


def test_a_type_whose_annotations_mean_nothing_is_refused() -> None:
    @dataclass
    class Lost:
        what: Nowhere  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigurationError, match="annotation in it cannot be resolved"):
        CODEC.check_type(Lost)
