"""Asking: a request is asked once, answered once, and the reply is recorded where a workflow asks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from holdfast.testing.faults import Proxy
from holdfast.types import PayloadContext
from tests.processes import Points, Processes, Waits, rows, settled, within


@dataclass
class Quote:
    item: str
    price: float


class SoldOut(Exception):
    """Known to nobody."""


PRICES = hf.Topic[str, Quote]("price")
GO = hf.Topic[None]("go")


@hf.workflow
async def clerk() -> int:
    """Answers until it is asked for nothing; how often it did."""
    answered = 0
    async for request in PRICES.requests():
        answered += 1
        if not request.value:
            await request.reply(Quote("", 0))
            break
        if request.value == "unicorn":
            await request.reject(LookupError("no unicorns"))
        elif request.value == "chair":
            await request.reject("we have no chairs")
        elif request.value == "table":
            await request.reject(SoldOut("no table"))
        else:
            await request.reply(Quote(request.value, len(request.value) * 1.5))
    return answered


@hf.workflow
async def shop(to: str, *items: str) -> list[str]:
    found = []
    for item in items:
        try:
            quote = await PRICES.ask(to, item)
        except (hf.HoldfastError, LookupError) as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append(f"{quote.item} {quote.price}")
    await GO.recv()
    return found


@hf.workflow
async def deaf() -> None:
    """Takes no requests."""
    await GO.recv()


@hf.workflow
async def late() -> str:
    """Takes a request, and answers when it is told to."""
    async for request in PRICES.requests():
        await GO.recv()
        await request.reply(Quote(request.value, 1))
        break
    await GO.recv()
    return "unharmed"


async def replies(database: Connection) -> list[tuple[str, int]]:
    """Workflow and revision of every reply."""
    found = await database.fetch(
        "select workflow_id, revision from holdfast.events where key like '::reply:%'"
    )
    return [tuple(row) for row in found]


async def requests(database: Connection) -> int:
    """How many messages ask."""
    return int(await database.fetchval("select count(request) from holdfast.messages"))


async def test_from_outside(processes: Processes, database: Connection) -> None:
    rt, client = await processes.runtime(clerk), await processes.client()
    handle = await rt.start(clerk(), id="clerk")
    assert await rt.ask("clerk", PRICES, "lamp", timeout=10) == Quote("lamp", 6.0)
    assert await client.ask("clerk", PRICES, "bed") == Quote("bed", 4.5)
    assert await handle.ask(PRICES, "sofa") == Quote("sofa", 6.0)
    assert await client.handle("clerk").ask("price", "door", timeout=5) == {"item": "door", "price": 6.0}
    assert await client.ask("clerk", "price", "", type=Quote) == Quote("", 0)
    assert await handle.result() == 5
    assert await requests(database) == 5
    assert await replies(database) == [("clerk", 1)] * 5
    assert await rt.get_events("clerk") == await rt.get_events("clerk", history=True) == {}


async def test_many_at_once_are_each_given_their_own_reply(processes: Processes) -> None:
    rt, client = await processes.runtime(clerk), await processes.client()
    await rt.start(clerk(), id="clerk")
    items = ["x" * n for n in range(1, 101)]
    found = await asyncio.gather(
        *(process.ask("clerk", PRICES, item) for item in items for process in (rt, client))
    )
    assert [quote.item for quote in found] == [item for item in items for _ in range(2)]


async def test_from_a_workflow_it_is_one_call(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(clerk, shop)
    await rt.start(clerk(), id="clerk")
    await rt.start(shop("clerk", "lamp", "unicorn", "chair", "table", "nothing" * 3), id="shop")
    await rt.send("shop", None, GO)
    assert await rt.handle(shop, "shop").result(20) == [
        "lamp 6.0",
        "LookupError: no unicorns",
        "RequestRejected: we have no chairs",
        f"RemoteError: {__name__}.SoldOut: no table",
        "nothingnothingnothing 31.5",
    ]
    assert [(step.kind, step.name) for step in await rt.steps("shop")] == [("ask", "price")] * 5 + [
        ("recv", "go")
    ]
    assert [step.kind for step in await rt.steps("clerk")][:4] == ["recv", "reply", "recv", "reject"]


async def test_a_replay_asks_nobody_and_has_the_same_replies(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    first = await processes.runtime(clerk, shop)
    await first.start(clerk(), id="clerk")
    await first.start(shop("clerk", "lamp", "unicorn", "chair", "table"), id="shop")
    await waits.on("message", "shop", "go")
    await waits.on("message", "clerk", "price")
    await processes.leave(first)
    before = await rows(database, "steps", "messages", "events")

    waits.forget()
    points.passed.clear()
    second = await processes.runtime(clerk, shop)
    await waits.on("message", "shop", "go")
    await waits.on("message", "clerk", "price")
    assert second.statistics().writer.records == 2  # the recvs that wait
    assert points.passed["send.before_commit"] == points.passed["set.before_commit"] == 0
    assert await rows(database, "steps", "messages", "events") == before
    await second.send("shop", None, GO)
    assert len(await second.handle(shop, "shop").result(20)) == 4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", ["send.before_commit", "set.before_commit", "recv.before_claim"])
async def test_a_crash_neither_loses_nor_doubles_a_request_or_its_reply(
    processes: Processes, database: Connection, points: Points, point: str, when: str
) -> None:
    first = await processes.runtime(clerk, shop)
    killed = points.kill(first, point, when)
    await first.start(clerk(), id="clerk")
    await first.start(shop("clerk", "lamp", "unicorn"), id="shop")
    await within(10, killed.wait())
    await processes.leave(first)

    second = await processes.runtime(clerk, shop)
    await second.send("shop", None, GO)
    assert await second.handle(shop, "shop").result(20) == ["lamp 6.0", "LookupError: no unicorns"]
    assert await requests(database) == 2
    assert await replies(database) == [("clerk", 1)] * 2


async def test_an_asker_that_crashed_while_it_waited_has_its_reply(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(shop)
    other = await processes.client()
    await other.start(clerk(), id="clerk")
    await first.start(shop("clerk", "lamp"), id="shop")
    await waits.on("end", "clerk")
    await processes.leave(first)
    assert await requests(database) == 1

    answering = await processes.runtime(clerk)
    while not await replies(database):
        await asyncio.sleep(0.01)
    await processes.leave(answering)
    second = await processes.runtime(shop)
    await second.send("shop", None, GO)
    assert await second.handle(shop, "shop").result(20) == ["lamp 6.0"]
    assert await requests(database) == 1


async def test_the_asker_and_the_asked_are_woken_by_notification(processes: Processes, waits: Waits) -> None:
    here, there = await processes.runtime(clerk), await processes.runtime(shop)
    client = await processes.client()
    await here.start(clerk(), id="clerk")
    await waits.on("message", "clerk", "price")
    assert await within(2, client.ask("clerk", PRICES, "lamp")) == Quote("lamp", 6.0)
    await there.start(shop("clerk", "lamp"), id="shop")
    await waits.on("message", "shop", "go")
    assert here.statistics().listener.bells >= 1
    assert client.statistics().listener.bells >= 1


async def test_n5_with_the_listeners_cut_nothing_is_missed(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    here, there = await processes.runtime(late), await processes.runtime(shop)
    client = await processes.client()
    await here.start(late(), id="late")
    await there.start(shop("late", "lamp"), id="shop")
    await waits.on("message", "late", "go")
    await waits.on("end", "late")
    waits.forget()
    async with processes.unheard(database):
        await client.send("late", None, GO)
    await client.send("late", None, GO)
    assert await within(5, here.handle(late, "late").result()) == "unharmed"
    await waits.on("message", "shop", "go")
    await client.send("shop", None, GO)
    assert await within(5, there.handle(shop, "shop").result()) == ["lamp 1.0"]


@hf.step
async def ask_from_step(to: str) -> str:
    quote = await PRICES.ask(to, "lamp", timeout=10)
    return f"{quote.item} {quote.price}"


@hf.workflow
async def asks_in_a_step(to: str) -> list[str]:
    here = hf.current()
    assert here.step_id is None
    return [await ask_from_step(to)]


async def test_from_a_step(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(clerk, asks_in_a_step)
    await rt.start(clerk(), id="clerk")
    assert await rt.run(asks_in_a_step("clerk"), id="asker") == ["lamp 6.0"]
    assert [step.kind for step in await rt.steps("asker")] == ["step"]
    with pytest.raises(hf.WorkflowFailed) as caught:
        await rt.run(asks_in_a_step("nobody"))
    assert isinstance(caught.value.__cause__, hf.WorkflowNotFound)


@hf.workflow
async def asks_by_handle(to: str) -> str:
    other = await hf.start(clerk(), id=to)
    quote = await other.ask(PRICES, "lamp")
    return f"{quote.item} {quote.price}"


async def test_a_handle_in_a_workflow_asks_durably(processes: Processes) -> None:
    rt = await processes.runtime(clerk, asks_by_handle)
    assert await rt.run(asks_by_handle("clerk"), id="asker") == "lamp 6.0"
    assert [step.kind for step in await rt.steps("asker")] == ["start", "ask"]


async def test_outside_a_workflow_a_topic_says_what_to_call(processes: Processes) -> None:
    with pytest.raises(hf.NotInWorkflow, match=r"Runtime\.ask.*Handle\.ask"):
        PRICES.ask("clerk", "lamp")
    with pytest.raises(hf.NotInWorkflow):
        await anext(PRICES.requests())


async def test_nobody_to_ask(processes: Processes, database: Connection, waits: Waits) -> None:
    rt = await processes.runtime(shop, deaf)
    await rt.start(deaf(), id="over")
    await rt.send("over", None, GO)
    await rt.handle("over").result()
    with pytest.raises(hf.WorkflowNotFound):
        await rt.ask("nobody", PRICES, "lamp")
    with pytest.raises(hf.WorkflowFinished):
        await rt.ask("over", PRICES, "lamp")
    await rt.start(shop("nobody", "lamp"), id="one")
    await rt.start(shop("over", "lamp"), id="two")
    for name in ("one", "two"):
        await waits.on("message", name, "go")
    await processes.leave(rt)
    open_calls = "select count(*) from holdfast.steps where finished_at is null and kind = 'ask'"
    assert await database.fetchval(open_calls) == 0
    again = await processes.runtime(shop)
    for name in ("one", "two"):
        await again.send(name, None, GO)
    assert await again.handle("one").result() == ["WorkflowNotFound: no workflow has the id 'nobody'"]
    assert await again.handle("two").result() == ["WorkflowFinished: workflow 'over' has ended"]
    assert await requests(database) == 0


@pytest.mark.parametrize("how", ["returns", "cancelled"])
async def test_an_asked_workflow_that_ends_without_a_reply(
    processes: Processes, waits: Waits, how: str
) -> None:
    rt, client = await processes.runtime(shop, deaf), await processes.client()
    handle = await rt.start(deaf(), id="deaf")
    await rt.start(shop("deaf", "lamp"), id="shop")
    asking = asyncio.create_task(client.ask("deaf", PRICES, "lamp"))
    await waits.on("end", "deaf", times=2)
    if how == "returns":
        await handle.send(GO, None)
    else:
        await handle.cancel()
    with pytest.raises(hf.WorkflowFinished):
        await within(2, asking)
    await rt.send("shop", None, GO)
    assert await within(5, rt.handle("shop").result()) == ["WorkflowFinished: workflow 'deaf' has ended"]


async def test_a_reply_is_had_though_the_asked_workflow_ends_with_it(processes: Processes) -> None:
    await processes.runtime(clerk)
    client = await processes.client()
    handle = await client.start(clerk(), id="clerk")
    assert await within(5, client.ask("clerk", PRICES, "")) == Quote("", 0)
    assert await handle.result() == 1
    assert client.statistics().waiters.waiting == 0


async def test_an_asker_that_gives_up_harms_nobody(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt, client = await processes.runtime(late), await processes.client()
    await rt.start(late(), id="late")
    with pytest.raises(hf.WaitTimeout):
        await client.ask("late", PRICES, "lamp", timeout=0.05)
    waits.forget()
    asking = asyncio.create_task(client.ask("late", PRICES, "bed"))
    await waits.on("end", "late")
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()
    assert client.statistics().waiters.waiting == 0
    await client.send("late", None, GO)
    await client.send("late", None, GO)
    assert await rt.handle("late").result() == "unharmed"
    assert await replies(database) == [("late", 1)]


@hf.workflow
async def impatient(to: str, seconds: float) -> str:
    try:
        await PRICES.ask(to, "lamp", timeout=seconds)
    except hf.WaitTimeout:
        await GO.recv()
        return "late"
    return "in time"


async def test_w9_in_a_workflow_the_deadline_is_recorded_and_so_is_its_passing(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    first = await processes.runtime(impatient, deaf)
    await first.start(deaf(), id="deaf")
    await first.start(impatient("deaf", 3600), id="asker")
    await waits.on("end", "deaf")
    deadline = "select deadline from holdfast.steps where kind = 'ask'"
    recorded = await database.fetchval(deadline)
    assert recorded is not None
    await processes.leave(first)
    async with DatabaseClock(dsn) as clock:
        second = await processes.runtime(impatient, deaf)
        await waits.on("end", "deaf", times=2)
        assert await database.fetchval(deadline) == recorded
        assert await requests(database) == 1
        await clock.advance(3601)
        await waits.on("message", "asker", "go")
        await processes.leave(second)
    third = await processes.runtime(impatient)
    await third.send("asker", None, GO)
    assert await third.handle("asker").result() == "late"


async def test_w10_cancelling_the_asker_leaves_no_waiter(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    asker, asked = await processes.runtime(shop), await processes.runtime(late)
    await asked.start(late(), id="late")
    before = asker.statistics().waiters.waiting
    handle = await asker.start(shop("late", "lamp"), id="shop")
    await waits.on("end", "late")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result()
    await settled(asker)
    assert asker.statistics().waiters.waiting == before
    for _ in range(2):
        await asked.send("late", None, GO)
    assert await asked.handle("late").result() == "unharmed"
    assert await database.fetchval("select outcome from holdfast.steps where kind = 'ask'") == 2


@hf.workflow
async def loses_interest(to: str) -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(to))
            group.create_task(_give_up())
    except* ValueError:
        await GO.recv()
    return "did something else"


async def _ask(to: str) -> None:
    await PRICES.ask(to, "lamp")


async def _give_up() -> None:
    await hf.recv("give up")
    raise ValueError


async def test_an_ask_that_a_sibling_cancels_does_the_same_on_a_replay(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    first = await processes.runtime(late, loses_interest)
    await first.start(late(), id="late")
    await first.start(loses_interest("late"), id="asker")
    await waits.on("message", "late", "go")
    await waits.on("end", "late")
    await first.send("asker", None, "give up")
    await waits.on("message", "asker", "go")
    await first.send("late", None, GO)
    while not await replies(database):
        await asyncio.sleep(0.01)
    await processes.leave(first)
    second = await processes.runtime(late, loses_interest)
    await second.send("asker", None, GO)
    assert await second.handle("asker").result(20) == "did something else"
    assert await requests(database) == 1


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_a_lost_connection_never_asks_twice(
    processes: Processes, database: Connection, dsn: str, part: str
) -> None:
    rt = await processes.runtime(clerk)
    await rt.start(clerk(), id="clerk")
    async with Proxy(dsn) as proxy:
        client = await processes.client(dsn=proxy.dsn)
        lost = getattr(proxy, part)("commit_batch")
        assert await client.ask("clerk", PRICES, "lamp") == Quote("lamp", 6.0)
        assert lost.happened.is_set()
        await processes.leave(client)
    assert await requests(database) == 1


class Bound:
    """A codec that opens what it has sealed in the same place only."""

    def encode(self, data: bytes, context: PayloadContext, /) -> bytes:
        return repr(context).encode() + b"|" + data[::-1]

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        place, _, sealed = data.partition(b"|")
        assert place == repr(context).encode()
        return sealed[::-1]


async def test_k3_replies_and_rejections_go_through_the_codec(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    settings = hf.Settings(codec=Bound())
    rt = await processes.runtime(clerk, shop, settings=settings)
    client = await processes.client(settings=settings)
    await rt.start(clerk(), id="clerk")
    assert await client.ask("clerk", PRICES, "lamp") == Quote("lamp", 6.0)
    await rt.start(shop("clerk", "bed", "unicorn"), id="shop")
    await waits.on("message", "shop", "go")
    await processes.leave(rt)
    again = await processes.runtime(shop, settings=settings)
    await again.send("shop", None, GO)
    assert await again.handle("shop").result() == ["bed 4.5", "LookupError: no unicorns"]
    stored = await database.fetch("select payload from holdfast.events")
    assert all(b"name='price'" in row[0] and b"kind='reply'" in row[0] for row in stored)


async def test_a_registered_error_comes_back_as_itself(processes: Processes, dsn: str) -> None:
    rt = await processes.runtime(clerk)
    await rt.start(clerk(), id="clerk")
    async with hf.Client(dsn, errors=[SoldOut]) as client:
        with pytest.raises(SoldOut, match="no table") as caught:
            await client.ask("clerk", PRICES, "table")
        assert caught.value.args == ("no table",)
    with pytest.raises(hf.RemoteError, match="SoldOut"):
        await rt.ask("clerk", PRICES, "table")


async def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    await client.start(clerk(), id="clerk")
    anything: Any = PRICES
    with pytest.raises(hf.PayloadNotSerializable):
        await client.ask("clerk", anything, object())
    with pytest.raises(hf.PayloadTooLarge):
        await client.ask("clerk", PRICES, "x" * 2_000_000)
    with pytest.raises(hf.InvalidName):
        await client.ask("", PRICES, "lamp")
    with pytest.raises(hf.InvalidName):
        await client.ask("clerk", "", "lamp")
    with pytest.raises(ValueError, match="duration"):
        await client.ask("clerk", PRICES, "lamp", timeout=-1)
    assert await requests(database) == 0


@hf.workflow
async def asks_at_once(to: str, count: int) -> list[float]:
    quotes = await asyncio.gather(*(PRICES.ask(to, "x" * n, timeout=60) for n in range(1, count + 1)))
    await GO.recv()
    return [quote.price for quote in quotes]


async def test_w4_asks_side_by_side_have_their_own_replies_on_a_replay_too(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    first = await processes.runtime(clerk, asks_at_once)
    await first.start(clerk(), id="clerk")
    await first.start(asks_at_once("clerk", 50), id="asker")
    await waits.on("message", "asker", "go")
    await processes.leave(first)
    second = await processes.runtime(asks_at_once)
    await second.send("asker", None, GO)
    assert await second.handle("asker").result(20) == [n * 1.5 for n in range(1, 51)]
    assert await requests(database) == len(await replies(database)) == 50
