"""Every kind of value that is to come back as itself, with a workflow that takes it through every place.

Loaded by the test and by the process that the test kills: nothing here depends on which of them it is.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import sys
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic

import holdfast as hf

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: Later = None


class Options(TypedDict, total=False):
    verbose: bool
    colour: Colour


@dataclass
class Line:
    price: Decimal
    at: dt.datetime
    tags: set[str] = field(default_factory=set)
    raw: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slotted:
    a: int
    _hidden: str = "?"


@dataclass
class Derived(Line):
    more: list[Line] = field(default_factory=list)
    computed: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.computed = len(self.more)


@dataclass
class Pair(Generic[T]):
    one: T
    two: T | None = None


@dataclass
class Tree:
    label: str
    children: list[Tree] = field(default_factory=list)


@attrs.define
class Box:
    size: tuple[int, int]
    _secret: int = 3
    line: Line | None = None
    number: int = attrs.field(default=0, converter=int, validator=attrs.validators.ge(0))


@attrs.frozen(kw_only=True)
class Held(Generic[T]):
    value: T


class Card(msgspec.Struct, tag="card", rename="camel"):
    card_number: str


class Cash(msgspec.Struct, tag="cash", frozen=True):
    amount: Decimal
    notes: list[int] = []


class Listed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    a: int
    b: Colour = Colour.RED


class Chain(msgspec.Struct, omit_defaults=True):
    next: Chain | None = None
    boxes: list[Box] = []


class Item(pydantic.BaseModel):
    id: UUID
    price: Annotated[Decimal, pydantic.Field(gt=0)]
    at: dt.datetime


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    items: list[Item]
    note: str | None = pydantic.Field(None, alias="remark", max_length=50)
    colour: Colour = Colour.BLUE
    lines: dict[str, Line] = {}

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> Decimal:
        return sum((item.price for item in self.items), Decimal(0))


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    friends: list[Animal] = []


Animal = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
Dog.model_rebuild()


class Names(pydantic.RootModel[dict[str, list[int]]]):
    pass


class Boxed(pydantic.BaseModel, Generic[T]):
    content: T


class Blob(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", strict=True)
    data: bytes
    delta: dt.timedelta


class Mixed(msgspec.Struct):
    order: Order
    line: Line
    box: Box
    animals: list[Cat] = []


@dataclass
class Choice:
    what: Cat | Dog | None
    data: bytes = b""


Later = int | None
Account = NewType("Account", str)
Small = Annotated[int, msgspec.Meta(ge=0, le=10)]

INDIA = dt.timezone(dt.timedelta(hours=5, minutes=30))
NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=INDIA)
FIRST, LAST = dt.datetime.min, dt.datetime.max  # noqa: DTZ901 - without a time zone is what is meant
BERLIN = dt.datetime(2026, 7, 3, 4, 5, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
LINE = Line(Decimal("0.10"), NOW, {"a", "b"}, b"\x00\xff")
BOX = Box((1, 2), 7, LINE, 5)
ITEM = Item(id=UUID(int=7), price=Decimal("1.10"), at=NOW)
ORDER = Order(items=[ITEM], remark="x", lines={"a": Line(Decimal("1.0"), NOW)})
TEXT = "\0 \x7f ‏אבג \u202e 👩‍👩‍👧 é e\u0301 \uffff ' \" \\ %s $1 \u2028"

KINDS: dict[str, tuple[Any, list[Any]]] = {
    "none": (None, [None]),
    "bool": (bool, [True, False]),
    "int": (int, [0, -1, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**1000]),
    "float": (float, [0.1, -0.0, 5e-324, sys.float_info.max, 1e22]),
    "str": (str, ["", TEXT, "null", "**********"]),
    "bytes": (bytes, [b"", bytes(range(256))]),
    "datetime": (dt.datetime, [NOW, NOW.replace(tzinfo=None), BERLIN, FIRST, LAST]),
    "date": (dt.date, [NOW.date(), dt.date.min, dt.date.max]),
    "time": (dt.time, [dt.time(1, 2, 3, 4), dt.time(1, tzinfo=dt.UTC), dt.time.max]),
    "timedelta": (
        dt.timedelta,
        [dt.timedelta(days=-1, microseconds=3), dt.timedelta.min, dt.timedelta.max, dt.timedelta(0)],
    ),
    "decimal": (
        Decimal,
        [Decimal(text) for text in ("1.1000", "1E+400", "-0", "0E-10", "1E-999999", "0." + "123456789" * 30)],
    ),
    "uuid": (UUID, [UUID(int=0), UUID(int=2**128 - 1)]),
    "enum": (Colour, [Colour.RED]),
    "int enum": (Level, [Level.HIGH]),
    "str enum": (Word, [Word.YES]),
    "flag": (Right, [Right.READ, Right.READ | Right.WRITE, Right(0)]),
    "int flag": (Mode, [Mode.A | Mode.B]),
    "list": (list[dt.date | None], [[NOW.date(), None], []]),
    "tuple": (tuple[int, str, None], [(1, "a", None)]),
    "tuples": (tuple[bytes, ...], [(b"a", b"b"), ()]),
    "set": (set[int], [{1, 2}, set()]),
    "frozenset": (frozenset[UUID], [frozenset({UUID(int=1)})]),
    "dict": (dict[str, Any], [{"deep": [{"er": [1, 2.5, None, True, TEXT, 2**80]}]}, {}]),
    "int keys": (dict[int, Colour], [{1: Colour.RED, -(2**80): Colour.BLUE}]),
    "uuid keys": (dict[UUID, bytes], [{UUID(int=1): b"x"}]),
    "enum keys": (dict[Colour, int], [{Colour.RED: 1}]),
    "date keys": (dict[dt.date, int], [{NOW.date(): 1}]),
    "float keys": (dict[float, int], [{1.5: 1, -0.5: 2}]),
    "decimal keys": (dict[Decimal, int], [{Decimal("1.50"): 1}]),
    "literal keys": (dict[Literal["a", "b"], int], [{"a": 1}]),
    "abstract": (Mapping[str, Sequence[int]], [{"a": [1]}]),
    "named tuple": (Point, [Point(1, 2), Point(1)]),
    "typed dict": (Options, [{"verbose": True, "colour": Colour.RED}, {}]),
    "dataclass": (Line, [LINE]),
    "slotted dataclass": (Slotted, [Slotted(a=1), Slotted(a=1, _hidden="!")]),
    "derived dataclass": (Derived, [Derived(Decimal(1), NOW, more=[LINE])]),
    "generic dataclass": (Pair[dt.date], [Pair(NOW.date(), NOW.date()), Pair(NOW.date())]),
    "recursive dataclass": (Tree, [Tree("a", [Tree("b", [Tree("c")]), Tree("d")])]),
    "attrs": (Box, [BOX, Box((1, 2), secret=0)]),
    "generic attrs": (Held[Colour], [Held(value=Colour.RED)]),
    "structs": (Card | Cash, [Card("4242"), Cash(Decimal("1.50"), [1])]),
    "list of structs": (list[Card | Cash | None], [[Cash(Decimal(1)), None, Card("1")]]),
    "struct as array": (Listed, [Listed(1, Colour.BLUE)]),
    "recursive struct": (Chain, [Chain(Chain(Chain(boxes=[BOX])))]),
    "pydantic": (Order, [ORDER, Order(items=[], remark=None)]),
    "pydantic in a dict": (dict[str, Order], [{"a": ORDER}]),
    "pydantic or none": (Order | None, [None, ORDER]),
    "discriminated": (Animal, [Cat(lives=1), Dog(friends=[Cat(), Dog()])]),
    "undiscriminated": (list[Cat | Dog], [[Dog(), Cat()]]),
    "pydantic or text": (Cat | str, [Cat(), "cat"]),
    "pydantic or dataclass": (Cat | Line, [Cat(), LINE]),
    "root model": (Names, [Names({"a": [1]})]),
    "generic model": (Boxed[Line], [Boxed[Line](content=Line(Decimal(1), NOW))]),
    "strict model": (Blob, [Blob(data=b"\xff", delta=dt.timedelta(1))]),
    "struct of all": (Mixed, [Mixed(ORDER, LINE, BOX, [Cat()])]),
    "dataclass of models": (Choice, [Choice(Dog(), b"\xff"), Choice(None)]),
    "literal": (Literal["a", 1, None], ["a", 1, None]),
    "constrained": (Small, [10]),
    "new type": (Account, ["x"]),
    "optional": (int | str | None, [1, "1", None]),
    "number or text": (Decimal | int | bool, [Decimal("1.0"), 1, True]),
    "any": (Any, [{"a": [1, 2.5, None, True, TEXT]}, [], "x"]),
}

GO = hf.Topic[None]("go")
ready = hf.Event[bool]("ready")


def same(found: object, value: object, where: str) -> None:
    """The same value, of the same class.

    Raises:
        ValueError: if not.
    """
    shown = isinstance(value, float | Decimal)  # -0.0 and 1.10 equal 0.0 and 1.1, and are not the same
    if found != value or found.__class__ is not value.__class__ or (shown and repr(found) != repr(value)):
        raise ValueError(f"{where}: {found!r} of {value!r}")


def typed(fn: Any, kind: Any, names: str) -> Any:  # noqa: ANN401
    """A function whose parameters of these names, and whose result, are of this type."""
    fn.__annotations__ = dict.fromkeys([*names.split(), "return"], kind)
    return fn


def workflows_of(label: str) -> tuple[hf.Workflow[..., Any], hf.Workflow[..., Any]]:
    """A workflow that takes one value through every place, and the child that it needs."""
    kind, values = KINDS[label]
    topic, event, stream = hf.Topic[kind]("v"), hf.Event[kind]("v"), hf.Stream[kind]("v")  # type: ignore[valid-type]

    async def gives(value):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return value

    async def speaks(value):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        me = hf.current().workflow_id
        await topic.send(me, value)
        await event.set(value)
        await stream.write(value)
        return await event.get(me)

    async def keeps(connection, value):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return value

    step = hf.step(typed(gives, kind, "value"), name="gives")
    says = hf.step(typed(speaks, kind, "value"), name="speaks")
    books = hf.transaction(typed(keeps, kind, "value"))

    async def child(value):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return value

    child_flow = hf.workflow(name=f"{label} child")(typed(child, kind, "value"))

    async def flow(number, one, /, two, *rest, named, default=values[0], **others):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN002, ANN003, ANN202
        value, me = values[number], hf.current().workflow_id
        places = {
            "positional": one,
            "either": two,
            "rest": rest[0],
            "named": named,
            "others": others["other"],
        }
        for where, found in places.items():
            same(found, value, where)
        same(default, values[0], "default")
        same(await step(one), value, "step")
        same(await says(one), value, "event in a step")
        same(await books(one), value, "transaction")
        same(await topic.recv(), value, "message of a step")
        await hf.send(me, one, topic)
        same(await topic.recv(), value, "message of a workflow")
        same(await topic.recv(), value, "message from outside")
        await event.set(one)
        same(await event.get(me), value, "event")
        await stream.write(one, two)
        same(await child_flow(one), value, "child")
        handle = await hf.start(child_flow(value=one))
        same(await handle.result(), value, "result of a child")
        if not await hf.recv("go", timeout=0, default=False):
            await ready.set(True)
            await GO.recv()
        return one

    flow = typed(flow, kind, "one two rest named default others")
    flow.__annotations__["number"] = int
    return hf.workflow(name=label)(flow), child_flow


WORKFLOWS = [each for label in KINDS for each in workflows_of(label)]


async def serve(dsn: str) -> None:
    """Runs them all until killed."""
    async with hf.Runtime(dsn, workflows=WORKFLOWS, settings=hf.Settings(heartbeat=0.1, lease=2)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
