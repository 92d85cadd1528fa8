"""Values of every type through every place where values are stored, and back again after a replay [K2]."""

import datetime as dt
import enum
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

import holdfast as hf
from tests.processes import Processes, Waits

GO = hf.Topic[None]("go")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    verbose: bool
    depth: int


@dataclass
class Line:
    price: Decimal
    at: dt.datetime
    tags: set[str] = field(default_factory=set)
    raw: bytes = b""


@attrs.define
class Box:
    size: tuple[int, int]
    line: Line | None = None
    colour: Colour = Colour.RED


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    amount: Decimal
    notes: list[int] = []


class Item(pydantic.BaseModel):
    id: UUID
    price: Decimal
    at: dt.datetime


class Order(pydantic.BaseModel):
    items: list[Item]
    note: str | None = None
    colour: Colour = Colour.BLUE


NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
LINE = Line(Decimal("0.10"), NOW, {"a", "b"}, b"\x00\xff")
ORDER = Order(items=[Item(id=UUID(int=7), price=Decimal("1.10"), at=NOW)])
TEXT = "\0 \x7f ‏אבג \u202e 👩‍👩‍👧 é e\u0301 \uffff ' \" \\ %s $1"

VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, bool),
    (2**80, int),
    (-(2**63), int),
    (sys.float_info.max, float),
    (5e-324, float),
    (TEXT, str),
    ("", str),
    (b"", bytes),
    (bytes(range(256)), bytes),
    (NOW, dt.datetime),
    (NOW.replace(tzinfo=None), dt.datetime),
    (NOW.date(), dt.date),
    (dt.time(1, 2, 3, 4), dt.time),
    (dt.timedelta(days=-1, microseconds=3), dt.timedelta),
    (Decimal("1.1000"), Decimal),
    (Decimal("1e400"), Decimal),
    (UUID(int=7), UUID),
    (Colour.RED, Colour),
    (Level.HIGH, Level),
    (Word.YES, Word),
    (Point(1, 2), Point),
    ({"verbose": True}, Options),
    (LINE, Line),
    (Box((1, 2), LINE), Box),
    (Card("4242"), Card | Cash),
    (Cash(Decimal("1.50"), [1]), Card | Cash),
    ([Cash(Decimal(1)), Card("1")], list[Card | Cash]),
    (ORDER, Order),
    ({"a": ORDER}, dict[str, Order]),
    ((1, "a", None), tuple[int, str, None]),
    ({1, 2}, set[int]),
    (frozenset({"a"}), frozenset[str]),
    ({1: Colour.RED}, dict[int, Colour]),
    ({UUID(int=1): b"x"}, dict[UUID, bytes]),
    (None, Order | None),
    ("b", Literal["a", "b"]),
    ({"deep": [{"er": [1, 2.5, None, True, TEXT]}]}, Any),
    ([], Any),
]


def typed(fn: Any, kind: Any) -> Any:  # noqa: ANN401
    """A function from this type to this type."""
    fn.__annotations__ = {"value": kind, "return": kind}
    return fn


def workflow_of(kind: Any) -> hf.Workflow[[Any], Any]:  # noqa: ANN401
    """A workflow that takes a value through a step, an event, a stream, a message and a child."""
    topic, event, stream = hf.Topic[kind]("v"), hf.Event[kind]("v"), hf.Stream[kind]("v")

    async def body(value):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return value

    step = hf.step(typed(body, kind), name="same")

    async def flow(value):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        me = hf.current().workflow_id
        stepped = await step(value)
        check(stepped, value)
        await event.set(stepped)
        await stream.write(stepped, value)
        await topic.send(me, stepped)
        received = await topic.recv()
        check(received, value)
        got = await event.get(me)
        check(got, value)
        await GO.recv()
        return got

    return hf.workflow(typed(flow, kind))


def check(found: object, value: object) -> None:
    """The same value, of the same class."""
    assert found == value
    assert found.__class__ is value.__class__


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=lambda each: ascii(each)[:40])
async def test_k2_a_value_comes_back_as_itself_from_everywhere(
    processes: Processes, waits: Waits, value: object, kind: object
) -> None:
    flow = workflow_of(kind)
    first = await processes.runtime(flow)
    await first.start(flow(value), id="w")
    await waits.on("message", "w", "go")
    await processes.leave(first)
    second = await processes.runtime(flow)  # decodes all of it once more
    handle = second.handle(flow, "w")
    await handle.send(GO, None)
    check(await handle.result(), value)
    check(await second.get_event("w", "v", type=kind), value)
    values: AsyncIterator[Any] = handle.read("v", type=kind)
    found = [each async for each in values]
    assert len(found) == 2
    for each in found:
        check(each, value)
