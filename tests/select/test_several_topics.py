"""recv on several topics; how it, firsts and plain recvs keep out of each other's way [M4, M5, M7, M8]."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, rows, settled, within
from tests.runtime.witness import PATIENCE, until


class Paid(msgspec.Struct):
    amount: int


class Refused(msgspec.Struct):
    why: str


PAID = hf.Topic[Paid]("paid")
REFUSED = hf.Topic[Refused]("refused")
A = hf.Topic[Any]("a")
B = hf.Topic[Any]("b")
TASKS: dict[str, list[asyncio.Task[Any]]] = {}


async def stored(database: Connection) -> list[tuple[str | None, bytes]]:
    found = await database.fetch("select consumed_by, payload from holdfast.messages order by id")
    return [(row[0], bytes(row[1])) for row in found]


@hf.workflow
async def inbox(count: int, timeout: float | None = None) -> list[Any]:
    got: list[Any] = []
    for _ in range(count):
        try:
            message = await hf.recv((PAID, REFUSED), timeout=timeout)
        except hf.WaitTimeout as error:
            got.append(str(error))
            continue
        got.append(message.amount if isinstance(message, Paid) else message.why)
    return got


async def test_m5_the_oldest_of_all_topics_comes_first_decoded_by_its_own(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    to = await client.start(inbox(4), id="to")
    await to.send(REFUSED, Refused("no"))
    await to.send(PAID, Paid(1))
    await to.send(PAID, Paid(2))
    await to.send(REFUSED, Refused("again"))
    rt = await processes.runtime(inbox)
    assert await within(PATIENCE, to.result()) == ["no", 1, 2, "again"]
    found = await database.fetch("select name, choice, kind from holdfast.steps order by seq")
    assert [tuple(row) for row in found] == [('["paid","refused"]', n, "recv") for n in (1, 0, 0, 1)]
    assert [step.name for step in await rt.steps("to")] == ['["paid","refused"]'] * 4


@pytest.mark.parametrize("bells", ["heard", "lost"])
async def test_n5_woken_by_any_of_its_topics(
    processes: Processes, database: Connection, waits: Waits, bells: str
) -> None:
    rt = await processes.runtime(inbox)
    idle = rt.statistics().waiters.waiting
    client = await processes.client()
    to = await rt.start(inbox(2), id="to")
    sent: list[tuple[hf.Topic[Any], Any]] = [(REFUSED, Refused("no")), (PAID, Paid(5))]
    for number, (topic, value) in enumerate(sent, 1):
        await waits.on("message", "to", "paid", times=number)
        await waits.on("message", "to", "refused", times=number)
        if bells == "lost":
            async with processes.unheard(database):
                await client.send("to", value, topic)
        else:
            await client.send("to", value, topic)
    assert await within(PATIENCE, to.result()) == ["no", 5]
    await settled(rt)
    assert rt.statistics().waiters.waiting == idle


async def test_m6_timeouts_and_default(processes: Processes, database: Connection) -> None:
    @hf.workflow
    async def impatient() -> list[Any]:
        got: list[Any] = [await hf.recv((PAID, REFUSED), timeout=0.01, default="nothing")]
        got.append(await hf.recv([PAID, REFUSED], timeout=0, default=None))
        try:
            await hf.recv([PAID, REFUSED], timeout=0)
        except hf.WaitTimeout as error:
            got.append(str(error))
        return got

    rt = await processes.runtime(impatient)
    *got, text = await rt.run(impatient(), id="one")
    assert got == ["nothing", None]
    assert '"paid","refused"' in text
    found = await database.fetch("select outcome, choice from holdfast.steps order by seq")
    assert [tuple(row) for row in found] == [(3, None)] * 3


async def test_w3_recorded_and_replayed_without_io(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def replayed() -> list[Any]:
        me = hf.current().workflow_id
        await REFUSED.send(me, Refused("no"))
        await PAID.send(me, Paid(1))
        one, two = await hf.recv((PAID, REFUSED)), await hf.recv((PAID, REFUSED))
        late = await hf.recv((PAID, REFUSED), timeout=0.01, default=None)
        return [repr(one), repr(two), late, await hf.recv("end")]

    first = await processes.runtime(replayed)
    await first.start(replayed(), id="one")
    await waits.on("message", "one", "end")
    await first.send("one", Paid(3), PAID)
    before = await rows(database, "steps", "messages")
    await processes.leave(first)
    second = await processes.runtime(replayed)
    await waits.on("message", "one", "end", times=2)
    assert await rows(database, "steps", "messages") == before
    await second.send("one", "end", "end")
    expected = ["Refused(why='no')", "Paid(amount=1)", None, "end"]
    assert await within(PATIENCE, second.handle("one").result()) == expected


async def test_names_cannot_collide(processes: Processes) -> None:
    """`["a","b"]` as the name of one topic is not a and b."""

    @hf.workflow
    async def names() -> list[Any]:
        me = hf.current().workflow_id
        await hf.send(me, "one", '["a","b"]')
        await hf.send(me, "two", "a")
        await hf.send(me, "three")
        return [
            await hf.recv(["a", "b"]),
            await hf.recv('["a","b"]'),
            await hf.recv(["a", '["a","b"]'], timeout=0, default="nothing"),
            await hf.recv(["b"], timeout=0, default="nothing"),
            await hf.recv(["x", "x"], timeout=0, default="nothing"),
            await hf.recv(),
        ]

    rt = await processes.runtime(names)
    assert await rt.run(names()) == ["two", "one", "nothing", "nothing", "nothing", "three"]


async def test_k1_every_topic_is_checked(processes: Processes) -> None:
    @hf.workflow
    async def bad() -> int:
        for topics in ([], ["a", ""], ["a", "b\0"], ["a" * 300]):
            with pytest.raises(ValueError, match=r"topic"):
                await hf.recv(topics)
        return 1

    rt = await processes.runtime(bad)
    assert await rt.run(bad()) == 1


@pytest.mark.parametrize("moment", ["recv.before_claim", "writer.before_commit", "writer.after_commit"])
async def test_m8_cancelled_while_its_claim_is_queued_or_in_flight_the_message_stays(
    processes: Processes, database: Connection, points: Points, moment: str
) -> None:
    @hf.workflow
    async def cancelled_once() -> list[Any]:
        task = asyncio.create_task(hf.recv([A, B]))
        TASKS[hf.current().workflow_id] = [task]
        try:
            got = await task
        except asyncio.CancelledError:
            got = "cancelled"
        return [got, await B.recv(timeout=0, default="nothing")]

    client = await processes.client()
    to = await client.start(cancelled_once(), id=f"to {moment}")
    await to.send(B, "kept")
    points.at(moment, lambda: TASKS[to.id][0].cancel())
    await processes.runtime(cancelled_once)
    assert await within(5, to.result()) == ["cancelled", "kept"]
    assert await stored(database) == [("2", b'"kept"')]


# Interleavings


def make(kind: str) -> hf.Wait[Any]:
    """A call that says what it took as (kind, value)."""
    if kind == "ab":
        return hf.recv([A, B])
    if kind == "first":
        return hf.first(A.recv(), B.recv())
    return A.recv() if kind == "a" else B.recv()


@hf.workflow
async def crowd(kinds: list[str]) -> list[Any]:
    calls = [asyncio.create_task(make(kind)) for kind in kinds]
    TASKS[hf.current().workflow_id] = calls
    done = await asyncio.gather(*calls, return_exceptions=True)
    return ["cancelled" if isinstance(got, BaseException) else got for got in done]


def value_of(got: Any) -> str:  # noqa: ANN401
    return str(got[1] if isinstance(got, list) else got)


def expected_of(kinds: list[str], sent: list[str]) -> list[str]:
    """Each message goes, as it comes, to the call that has waited longest of those that take it."""
    got = [""] * len(kinds)
    for number, topic in enumerate(sent):
        for place, kind in enumerate(kinds):
            if not got[place] and kind in (topic, "ab", "first"):
                got[place] = f"{topic}{number}"
                break
    return got


def served_at_once(kinds: list[str], sent: list[str]) -> list[str]:
    """All messages are there when the calls are made: each in turn takes the oldest, a first the leftmost."""
    left = [f"{topic}{number}" for number, topic in enumerate(sent)]
    got = []
    for kind in kinds:
        if kind == "first":
            fitting = sorted(left, key=lambda message: (message[0], int(message[1:])))
        else:
            fitting = [message for message in left if message[0] in kind]
        got.append(fitting[0] if fitting else "")
        if fitting:
            left.remove(fitting[0])
    return got


CROWDS = [
    (list(kinds), list(sent))
    for kinds in (("first", "first", "a"), ("a", "ab", "b"), ("first", "ab", "b"), ("b", "first", "a"))
    for sent in sorted(set(itertools.permutations("aabb", 3)))
    if all(expected_of(list(kinds), list(sent)))
]


@pytest.mark.parametrize(("kinds", "sent"), CROWDS, ids=str)
async def test_m7_messages_that_come_one_by_one_go_to_whoever_has_waited_longest(
    processes: Processes, database: Connection, waits: Waits, kinds: list[str], sent: list[str]
) -> None:
    rt = await processes.runtime(crowd)
    idle = rt.statistics().waiters.waiting
    to = await rt.start(crowd(kinds), id="to")
    for topic in "ab":
        await waits.on("message", "to", topic, times=sum(topic in kind or kind == "first" for kind in kinds))
    for number, topic in enumerate(sent):
        await to.send(topic, f"{topic}{number}")
    got = await within(PATIENCE, to.result())
    assert [value_of(one) for one in got] == expected_of(kinds, sent)
    await settled(rt)
    assert rt.statistics().waiters.waiting == idle
    assert all(by is not None for by, _ in await stored(database))


@pytest.mark.parametrize(("kinds", "sent"), [c for c in CROWDS if all(served_at_once(*c))][::2], ids=str)
async def test_m7_messages_that_are_there_go_to_the_calls_in_their_order(
    processes: Processes, kinds: list[str], sent: list[str]
) -> None:
    client = await processes.client()
    to = await client.start(crowd(kinds), id="to")
    for number, topic in enumerate(sent):
        await to.send(topic, f"{topic}{number}")
    rt = await processes.runtime(crowd)
    got = await within(PATIENCE, to.result())
    values = [value_of(one) for one in got]
    assert values == served_at_once(kinds, sent)
    await settled(rt)


async def test_m7_from_outside_all_at_once_each_message_goes_to_one_call(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    kinds = ["first", "ab", "a", "b"] * 10
    rt, client = await processes.runtime(crowd), await processes.client()
    to = await rt.start(crowd(kinds), id="to")
    await waits.on("message", "to", "a", times=30)
    await waits.on("message", "to", "b", times=30)
    sent = ["a", "b"] * 20
    await asyncio.gather(*(client.send("to", f"{t}{n}", t) for n, t in enumerate(sent)))
    got = [value_of(one) for one in await within(PATIENCE, to.result())]
    assert sorted(got) == sorted(f"{t}{n}" for n, t in enumerate(sent))
    assert all(value[0] in kind or kind == "first" for kind, value in zip(kinds, got, strict=True))


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("moment", ["recv.before_claim", "writer.before_commit", "writer.after_commit"])
async def test_m8_whoever_is_cancelled_while_served_the_message_goes_to_another(
    processes: Processes, database: Connection, waits: Waits, points: Points, moment: str, victim: int
) -> None:
    rt = await processes.runtime(crowd)
    idle = rt.statistics().waiters.waiting
    to = await rt.start(crowd(["first", "ab", "b"]), id="to")
    await waits.on("message", "to", "b", times=3)
    points.at(moment, lambda: TASKS["to"][victim].cancel())
    await to.send(B, "one")
    await to.send(B, "two")
    got = await within(PATIENCE, to.result())
    values = [value_of(one) for one in got]
    assert values.pop(victim) == "cancelled"
    assert values == ["one", "two"]
    assert all(by is not None for by, _ in await stored(database))
    await settled(rt)
    assert rt.statistics().waiters.waiting == idle


async def test_m7_a_plain_recv_that_waits_with_a_timeout_keeps_it_when_others_join(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    @hf.workflow
    async def joined() -> list[Any]:
        plain = asyncio.create_task(A.recv(timeout=1, default="late"))
        await hf.sleep(0.05)
        both = asyncio.create_task(hf.recv([A, B]))
        return [await plain, await both]

    rt = await processes.runtime(joined)
    to = await rt.start(joined(), id="to")
    await waits.on("message", "to", "a", times=2)
    found = await database.fetchrow("select deadline - started_at from holdfast.steps where kind = 'recv'")
    assert found is not None
    assert found[0].total_seconds() == pytest.approx(1)

    async def over() -> bool:
        return bool(await database.fetch("select from holdfast.steps where kind = 'recv' and outcome = 3"))

    await until(over, "its time is over")
    await to.send(A, "for both")
    assert await within(PATIENCE, to.result()) == ["late", "for both"]
