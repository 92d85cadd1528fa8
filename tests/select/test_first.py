"""`first`: one of several durable calls wins, is recorded in one commit, and takes nothing of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import holdfast as hf
from holdfast import _keys
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import Points, Processes, Waits, rows, settled, within
from tests.runtime.witness import PATIENCE, journal, quick, until

ANSWERS = hf.Topic[str]("answers")
ORDERS = hf.Topic[int]("orders")
URL = hf.Event[str]("url")
HOUR = 3600.0
RAN: list[str] = []
TASKS: dict[str, asyncio.Task[Any]] = {}


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
async def clock(dsn: str) -> AsyncIterator[DatabaseClock]:
    async with DatabaseClock(dsn) as clock:
        yield clock


async def consumed(database: Connection) -> list[str | None]:
    found = await database.fetch("select consumed_by from holdfast.messages order by id")
    return [row[0] for row in found]


async def row_of(database: Connection, step_id: str) -> tuple[Any, ...]:
    row = await database.fetchrow(
        "select kind, outcome, choice, output, target, deadline is not null, finished_at is not null "
        "from holdfast.steps where step_id = $1",
        step_id,
    )
    return tuple(row) if row else ()


# What can be waited for


@hf.workflow
async def quick_child(value: str) -> str:
    return value


@hf.workflow
async def failing_child() -> str:
    raise ValueError("as always")


@hf.workflow
async def waiting_child() -> str:
    return str(await hf.recv("go"))


@hf.workflow
async def publisher() -> None:
    await URL.set("here")


@hf.step
async def work(value: str) -> str:
    RAN.append(value)
    return value


@hf.step
def work_in_thread(value: str) -> str:
    return value


@hf.step(attempts=2, wait_initial=0, wait_jitter=0)
async def fail() -> str:
    raise ValueError("always")


@hf.workflow
async def any_of(which: str) -> list[Any]:
    me = hf.current().workflow_id
    never = ANSWERS.recv()
    waits: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "recv": lambda: ORDERS.recv(),
        "several": lambda: hf.recv((ANSWERS, ORDERS)),
        "event": lambda: URL.get("publisher"),
        "sleep": lambda: hf.sleep(0.01),
        "sleep until": lambda: hf.sleep_until(datetime.now(UTC)),
        "child": lambda: quick_child("done"),
        "step": lambda: work("done"),
        "thread": lambda: work_in_thread("done"),
    }
    if which in ("recv", "several"):
        await ORDERS.send(me, 7)
    if which == "result":
        handle = await hf.start(quick_child("done"))
        return list(await hf.first(never, handle.result()))
    return list(await hf.first(never, waits[which]()))


@pytest.mark.parametrize(
    ("which", "value"),
    [
        ("recv", 7),
        ("several", 7),
        ("event", "here"),
        ("sleep", None),
        ("sleep until", None),
        ("result", "done"),
        ("child", "done"),
        ("step", "done"),
        ("thread", "done"),
    ],
)
async def test_first_waits_for(processes: Processes, database: Connection, which: str, value: object) -> None:
    rt = await processes.runtime(any_of, quick_child, publisher)
    await rt.run(publisher(), id="publisher")
    assert await within(PATIENCE, rt.run(any_of(which))) == [1, value]
    assert rt.statistics().waiters.waiting == rt_waiters(rt)


def rt_waiters(rt: hf.Runtime) -> int:
    """Those of the runtime itself: for three kinds of work, and for what is asked to end."""
    return 4


@hf.workflow
async def woken(by: str) -> list[Any]:
    result = await hf.first(
        ANSWERS.recv(), ORDERS.recv(), URL.get("publisher"), waiting_child(), hf.sleep(HOUR), timeout=HOUR
    )
    assert result is not None
    return list(result)


@pytest.mark.parametrize(
    ("by", "expected"), [(0, [0, "yes"]), (1, [1, 5]), (2, [2, "here"]), (3, [3, "went"])]
)
@pytest.mark.parametrize("bells", ["heard", "lost"])
async def test_n5_a_first_is_woken_by_any_of_its_alternatives(
    processes: Processes, database: Connection, waits: Waits, by: int, expected: list[Any], bells: str
) -> None:
    rt = await processes.runtime(woken, waiting_child)
    other = await processes.runtime(publisher)
    handle = await rt.start(woken("x"), id="one")
    await waits.on("message", "one", "answers")
    await waits.on("message", "one/5", "go")

    async def ring() -> None:
        if by == 0:
            await other.send("one", "yes", ANSWERS)
        elif by == 1:
            await other.send("one", 5, ORDERS)
        elif by == 2:
            await other.run(publisher(), id="publisher")
        else:
            await other.send("one/5", "went", "go")

    if bells == "lost":
        async with processes.unheard(database):
            await ring()
    else:
        await ring()
    assert await within(PATIENCE, handle.result()) == expected
    if by < 2:
        assert await consumed(database) == ["6"]


async def test_m4_the_winner_is_one_row_and_one_commit(processes: Processes, database: Connection) -> None:
    @hf.workflow
    async def one() -> list[Any]:
        await ORDERS.send("one", 3)
        return list(await hf.first(ANSWERS.recv(), ORDERS.recv()))

    rt = await processes.runtime(one)
    assert await rt.run(one(), id="one") == [1, 3]
    assert await row_of(database, "4") == ("first", 0, 1, b"3", None, False, True)
    assert await consumed(database) == ["4"]
    assert [step.step_id for step in await rt.steps("one")] == ["1", "4"]
    (step,) = [step for step in await rt.steps("one") if step.kind == "first"]
    assert step.name == 'recv "answers" | recv "orders"'


async def test_the_lowest_of_several_that_are_ready_wins(processes: Processes, database: Connection) -> None:
    @hf.workflow
    async def lowest() -> list[Any]:
        me = hf.current().workflow_id
        await ANSWERS.send(me, "later")
        await ORDERS.send(me, 1)
        got = list(await hf.first(hf.recv("none"), ORDERS.recv(), ANSWERS.recv(), hf.sleep(0)))
        return [*got, await ANSWERS.recv()]

    rt = await processes.runtime(lowest)
    assert await rt.run(lowest()) == [1, 1, "later"]


async def test_first_of_names_its_alternatives(processes: Processes) -> None:
    @hf.workflow
    async def named() -> list[Any]:
        me = hf.current().workflow_id
        nothing = await hf.first_of(timeout=0.01, answer=ANSWERS.recv(), order=ORDERS.recv())
        await ORDERS.send(me, 1)
        return [nothing, list(await hf.first_of(answer=ANSWERS.recv(), order=ORDERS.recv()))]

    rt = await processes.runtime(named)
    assert await rt.run(named()) == [None, ["order", 1]]


# Timeouts


async def test_w9_timeouts_count_from_the_beginning_of_the_wait_and_through_crashes(
    processes: Processes, database: Connection, clock: DatabaseClock
) -> None:
    @hf.workflow
    async def patient(own: float) -> object:
        return await hf.first(ANSWERS.recv(), hf.sleep(HOUR), timeout=own)

    async def waiting() -> bool:
        return len(await database.fetch("select from holdfast.steps where deadline is not null")) == 2

    rt = await processes.runtime(patient, settings=quick(lease=60))
    await rt.start(patient(2 * HOUR), id="sleeps")
    await rt.start(patient(HOUR / 2), id="gives up")
    await until(waiting, "two deadlines")
    for _ in range(2):
        await clock.advance(HOUR / 5)
        await processes.leave(rt)
        rt = await processes.runtime(patient, settings=quick(lease=60))
    with pytest.raises(hf.WaitTimeout):
        await rt.handle("gives up").result(timeout=0.02)
    await clock.advance(HOUR / 5)
    assert await rt.handle("gives up").result(PATIENCE) is None
    with pytest.raises(hf.WaitTimeout):
        await rt.handle("sleeps").result(timeout=0.02)
    await clock.advance(HOUR / 2)
    assert await rt.handle("sleeps").result(PATIENCE) == [1, None]
    found = await database.fetch("select outcome, choice from holdfast.steps order by workflow_id")
    assert [tuple(row) for row in found] == [(3, None), (0, 1)]


async def test_w9_nothing_is_written_for_a_first_that_waits_for_ever_or_is_served_at_once(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def forever() -> list[Any]:
        return list(await hf.first(ANSWERS.recv(), ORDERS.recv()))

    rt = await processes.runtime(forever)
    handle = await rt.start(forever(), id="one")
    await waits.on("message", "one", "answers")
    assert await row_of(database, "3") == ()
    await handle.send(ANSWERS, "x")
    assert await handle.result() == [0, "x"]
    assert await row_of(database, "3") == ("first", 0, 0, b'"x"', None, False, True)


async def test_w9_a_past_deadline_still_makes_one_attempt(
    processes: Processes, database: Connection, clock: DatabaseClock
) -> None:
    @hf.workflow
    async def patient() -> object:
        return await hf.first(ANSWERS.recv(timeout=HOUR), ORDERS.recv(), timeout=HOUR)

    async def waiting() -> bool:
        return bool(await database.fetch("select from holdfast.steps where deadline is not null"))

    rt = await processes.runtime(patient, settings=quick(lease=60))
    await rt.start(patient(), id="one")
    await until(waiting, "a deadline")
    await processes.leave(rt)
    await clock.advance(24 * HOUR)
    client = await processes.client()
    await client.send("one", "in time", ANSWERS)
    rt = await processes.runtime(patient, settings=quick(lease=60))
    assert await rt.handle("one").result(PATIENCE) == [0, "in time"]


async def test_an_alternative_that_ends_by_failing_raises_or_gives_its_default(processes: Processes) -> None:
    @hf.workflow
    async def failures() -> list[Any]:
        got: list[Any] = []
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: ANSWERS.recv(timeout=0.01),
            lambda: ANSWERS.recv(timeout=0.01, default="default"),
            lambda: URL.get("nobody", timeout=0.01),
            lambda: URL.get("ended"),
            lambda: failing_child(),
            lambda: handle.result(),
            lambda: fail(),
        ]
        handle = await hf.start(failing_child())
        for call in calls:
            try:
                got.append((await hf.first(ORDERS.recv(), call()))[1])
            except Exception as error:
                got.append(type(error).__name__)
        return got

    rt = await processes.runtime(failures, failing_child, quick_child)
    await rt.run(quick_child("x"), id="ended")
    expected = ["WaitTimeout", "default", "WaitTimeout", "WorkflowFinished", "ValueError"]
    expected += ["WorkflowFailed", "StepFailed"]
    assert await rt.run(failures(), id="one") == expected
    await processes.leave(rt)


async def test_m6_a_message_that_does_not_fit_is_consumed_and_raises(processes: Processes) -> None:
    @hf.workflow
    async def strict() -> list[Any]:
        me = hf.current().workflow_id
        await hf.send(me, "not a number", "orders")
        await ORDERS.send(me, 2)
        try:
            await hf.first(ORDERS.recv())
        except hf.PayloadDecodeError:
            return list(await hf.first(ORDERS.recv()))
        return []

    rt = await processes.runtime(strict)
    assert await rt.run(strict()) == [0, 2]


class Bound:
    """A codec that opens a payload only where it belongs."""

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        return f"{context.workflow_id} {context.kind} {context.name}|".encode() + data

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        label, _, inside = data.partition(b"|")
        assert label.decode() == f"{context.workflow_id} {context.kind} {context.name}"
        return inside


async def test_k3_what_won_is_opened_as_what_it_is(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def sealed() -> list[Any]:
        me = hf.current().workflow_id
        await ORDERS.send(me, 1)
        await ANSWERS.send(me, "a")
        got: list[Any] = [
            await hf.first(hf.recv("none"), hf.recv((ANSWERS, ORDERS))),
            await hf.recv((ORDERS, ANSWERS)),
            await hf.first(ORDERS.recv(), work("step")),
            await hf.first(ORDERS.recv(), quick_child("child")),
            await hf.first(ORDERS.recv(), URL.get("publisher")),
        ]
        for failing in (fail, failing_child):
            try:
                await hf.first(ORDERS.recv(), failing())
            except (hf.StepFailed, ValueError) as error:
                got.append(type(error).__name__)
        return [*got, await hf.recv("end")]

    settings = hf.Settings(codec=Bound())
    workflows = (sealed, quick_child, failing_child, publisher)
    rt = await processes.runtime(*workflows, settings=settings)
    await rt.run(publisher(), id="publisher")
    await rt.start(sealed(), id="one")
    await waits.on("message", "one", "end")
    assert [step.error for step in await rt.steps("one") if step.kind == "first"][3:] == [
        None,
        "error",
        "ValueError: as always",
    ]
    await processes.leave(rt)
    rt = await processes.runtime(*workflows, settings=settings)
    await rt.send("one", "end", "end")
    expected = [[1, 1], "a", [1, "step"], [1, "child"], [1, "here"], "StepFailed", "ValueError", "end"]
    assert await within(PATIENCE, rt.handle("one").result()) == expected


# Replay


@hf.workflow
async def long_way() -> list[Any]:
    me = hf.current().workflow_id
    got: list[Any] = [await hf.first(ANSWERS.recv(), hf.sleep(0.01))]
    await ANSWERS.send(me, "a")
    got.append(await hf.first(work("w"), ANSWERS.recv(), quick_child("c")))
    got.append(await hf.first(ORDERS.recv(), quick_child("child")))
    got.append(await hf.first(ORDERS.recv(), work("step")))
    got.append(await hf.first(ORDERS.recv(), timeout=0.01))
    try:
        await hf.first(ORDERS.recv(timeout=0.01), ANSWERS.recv())
    except hf.WaitTimeout:
        got.append("late")
    try:
        await hf.first(ORDERS.recv(), failing_child())
    except ValueError as error:
        got.append(str(error))
    got.append(await hf.first(hf.recv((ORDERS, ANSWERS)), hf.recv("end")))
    got.append(await hf.recv("end"))
    return got


async def test_w3_a_replay_does_no_io_and_touches_no_loser(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(long_way, quick_child, failing_child)
    handle = await first.start(long_way(), id="one")
    await waits.on("message", "one", "end")
    await handle.send(ANSWERS, "late answer")

    async def eight_firsts() -> bool:
        return len([row for row in await journal(database, "one") if row[1] == "first"]) == 8

    async def others_ended() -> bool:
        return [info.id for info in await first.list(status=["ENQUEUED", "PENDING"])] == ["one"]

    await until(eight_firsts, "the last first has been served")
    await until(others_ended, "the children ended, those that lost too")
    before = await rows(database, "steps", "messages", "workflows")
    assert RAN == ["w", "step"] or RAN == ["step"]
    ran = list(RAN)
    await processes.leave(first)
    waits.forget()
    second = await processes.runtime(long_way, quick_child, failing_child)
    await waits.on("message", "one", "end")
    assert await rows(database, "steps", "messages", "workflows") == before
    assert ran == RAN
    await second.send("one", 1, ORDERS)
    await second.send("one", "end", "end")
    assert await within(PATIENCE, second.handle("one").result()) == [
        [1, None],
        [1, "a"],
        [1, "child"],
        [1, "step"],
        None,
        "late",
        "as always",
        [0, "late answer"],
        "end",
    ]


async def test_w5_other_alternatives_on_a_replay_are_nondeterminism(
    processes: Processes, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    @hf.workflow(name="changing")
    async def before() -> object:
        await hf.first(hf.sleep(0), ANSWERS.recv())
        return await hf.recv("end")

    @hf.workflow(name="changing")
    async def after() -> object:
        await hf.first(hf.sleep(0), ORDERS.recv())
        return await hf.recv("end")

    first = await processes.runtime(before)
    await first.start(before(), id="one")
    await waits.on("message", "one", "end")
    await processes.leave(first)
    second = await processes.runtime(after)

    async def parked() -> bool:
        return "parked" in caplog.text

    await until(parked, "parked")
    assert 'recv "orders"' in caplog.text
    await processes.leave(second)
    third = await processes.runtime(before)
    await third.send("one", "x", "end")
    assert await within(PATIENCE, third.handle("one").result()) == "x"


# Losing, being cancelled


async def test_m8_the_losers_consume_nothing_and_leave_no_waiter(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def race() -> list[Any]:
        got = list(await hf.first(ANSWERS.recv(), ORDERS.recv(), URL.get("nobody"), hf.sleep(HOUR)))
        await hf.recv("go")
        return [*got, await ORDERS.recv()]

    rt = await processes.runtime(race)
    idle = rt.statistics().waiters.waiting
    handle = await rt.start(race(), id="one")
    await waits.on("message", "one", "orders")
    await handle.send(ANSWERS, "won")
    await waits.on("message", "one", "go")
    assert rt.statistics().waiters.waiting == idle + 1
    await handle.send(ORDERS, 5)
    await handle.send("go", None)
    assert await handle.result() == [0, "won", 5]
    await settled(rt)
    assert rt.statistics().waiters.waiting == idle


async def test_a_losing_child_goes_on(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def parent() -> list[Any]:
        return list(await hf.first(waiting_child(), ANSWERS.recv()))

    rt = await processes.runtime(parent, waiting_child)
    handle = await rt.start(parent(), id="one")
    await waits.on("message", "one/2", "go")
    await waits.on("message", "one", "answers")
    await handle.send(ANSWERS, "won")
    assert await handle.result() == [1, "won"]
    child = rt.handle(waiting_child, "one/2")
    assert (await child.status()).status == "PENDING"
    await child.send("go", "after all")
    assert await child.result() == "after all"


async def test_w8_a_child_is_started_once_however_often_its_parent_is_recovered(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def parent() -> list[Any]:
        return list(await hf.first(ANSWERS.recv(), waiting_child()))

    first = await processes.runtime(parent, waiting_child)
    await first.start(parent(), id="one")
    for number in range(1, 4):
        await waits.on("message", "one/2", "go", times=number)
        await waits.on("message", "one", "answers", times=number)
        await processes.leave(first)
        first = await processes.runtime(parent, waiting_child)
    await waits.on("message", "one/2", "go", times=4)
    await first.send("one/2", "done", "go")
    assert await within(PATIENCE, first.handle("one").result()) == [1, "done"]
    assert await database.fetchval("select count(*) from holdfast.workflows") == 2


async def test_w8_a_child_whose_id_is_taken_raises_out_of_the_first(processes: Processes) -> None:
    @hf.workflow
    async def parent() -> list[Any]:
        try:
            return list(await hf.first(ANSWERS.recv(), quick_child("x")))
        except hf.WorkflowConflict:
            return list(await hf.first(quick_child("y")))

    rt = await processes.runtime(parent, quick_child, publisher)
    await rt.run(publisher(), id="one/2")
    assert await within(PATIENCE, rt.run(parent(), id="one")) == [0, "y"]


@hf.workflow
async def racing_step() -> list[Any]:
    return list(await hf.first(ANSWERS.recv(), slow_step(), timeout=HOUR) or ())


@hf.step
async def slow_step() -> str:
    here = hf.current()
    RAN.append(f"begun {here.step_id}")
    try:
        await asyncio.Event().wait()
    finally:
        RAN.append("ended")
    return "never"


async def test_a_losing_step_is_cancelled_and_records_nothing(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(racing_step)
    handle = await rt.start(racing_step(), id="one")
    await waits.on("message", "one", "answers")
    await until(lambda: _ran("begun 2"), "the body runs")
    await handle.send(ANSWERS, "won")
    assert await handle.result() == [0, "won"]
    assert RAN == ["begun 2", "ended"]
    assert [step.step_id for step in await rt.steps("one")] == ["3"]


async def _ran(what: str) -> bool:
    return what in RAN


async def test_a_step_does_not_begin_when_something_is_ready(processes: Processes) -> None:
    client = await processes.client()
    handle = await client.start(racing_step(), id="one")
    await handle.send(ANSWERS, "there already")
    await processes.runtime(racing_step)
    assert await handle.result() == [0, "there already"]
    assert RAN == []


async def test_steps_race_and_the_winners_attempts_are_recorded(
    processes: Processes, database: Connection
) -> None:
    tries = 0

    @hf.step(attempts=3, wait_initial=0, wait_jitter=0)
    async def third_time() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ValueError("again")
        return "at last"

    @hf.workflow
    async def race() -> list[Any]:
        return list(await hf.first(slow_step(), third_time()))

    rt = await processes.runtime(race)
    assert await rt.run(race(), id="one") == [1, "at last"]
    assert await database.fetchval("select attempts from holdfast.steps") == 3
    assert RAN[-1] == "ended"


async def test_a_step_in_a_first_gives_no_births(processes: Processes) -> None:
    """Its tasks belong to the step: the ids of the workflow's own tasks do not change [W4]."""

    @hf.step
    async def busy() -> str:
        await asyncio.gather(*(asyncio.create_task(asyncio.sleep(0)) for _ in range(3)))
        return "done"

    @hf.workflow
    async def births() -> list[Any]:
        got = list(await hf.first(ANSWERS.recv(), busy()))
        await asyncio.create_task(hf.set_event("e", 1))
        await asyncio.gather(URL.set("a"), chain())
        return got

    async def chain() -> None:
        await URL.set("b")

    rt = await processes.runtime(births)
    assert await rt.run(births(), id="one") == [1, "done"]
    assert [step.step_id for step in await rt.steps("one")] == ["3", "4", "5", "3.1"]


@hf.workflow
async def cancelled_once() -> list[Any]:
    task = asyncio.create_task(hf.first(ANSWERS.recv(), ORDERS.recv(), slow_step()))
    TASKS[hf.current().workflow_id] = task
    got: list[Any] = []
    try:
        got.append(await task)
    except asyncio.CancelledError:
        got.append("cancelled")
    return [*got, await ANSWERS.recv(timeout=0, default="nothing")]


@pytest.mark.parametrize("moment", ["recv.before_claim", "writer.before_commit", "writer.after_commit"])
async def test_m8_cancelled_while_its_claim_is_queued_or_in_flight_the_message_stays(
    processes: Processes, database: Connection, points: Points, moment: str
) -> None:
    client = await processes.client()
    to = await client.start(cancelled_once(), id=f"to {moment}")
    await to.send(ANSWERS, "kept")
    points.at(moment, lambda: TASKS[to.id].cancel())
    rt = await processes.runtime(cancelled_once)
    assert await within(5, to.result()) == ["cancelled", "kept"]
    assert await consumed(database) == ["5"]
    assert [step.step_id for step in await rt.steps(to.id)] == ["5"]


async def test_m8_cancelled_while_it_waits_and_while_it_is_answered(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    rt = await processes.runtime(cancelled_once)
    to = await rt.start(cancelled_once(), id="to")
    await waits.on("message", "to", "answers")
    await until(lambda: _ran("begun 3"), "the body runs")
    points.at("recv.before_claim", lambda: TASKS["to"].cancel())
    await to.send(ANSWERS, "kept")
    assert await within(5, to.result()) == ["cancelled", "kept"]
    assert await consumed(database) == ["5"]
    assert RAN == ["begun 3", "ended"]
    await settled(rt)
    assert rt.statistics().waiters.waiting == rt_waiters(rt)


async def test_m8_what_a_first_gives_back_goes_to_the_next_that_waits(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    @hf.workflow
    async def two() -> list[Any]:
        task = TASKS["to"] = asyncio.create_task(hf.first(ANSWERS.recv(), ORDERS.recv()))
        other = asyncio.create_task(ANSWERS.recv())
        done = await asyncio.gather(task, other, return_exceptions=True)
        return [type(one).__name__ if isinstance(one, BaseException) else one for one in done]

    rt = await processes.runtime(two)
    to = await rt.start(two(), id="to")
    await waits.on("message", "to", "answers", times=2)
    points.at("writer.after_commit", lambda: TASKS["to"].cancel())
    await to.send(ANSWERS, "kept")
    assert await within(5, to.result()) == ["CancelledError", "kept"]


@hf.step
async def stubborn() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        RAN.append("asked to end")
        await RELEASE["stubborn"].wait()


RELEASE: dict[str, asyncio.Event] = {}


@pytest.mark.parametrize("cancelled", [False, True])
async def test_m8_a_losing_step_is_waited_for_and_cancelling_meanwhile_gives_the_message_back(
    processes: Processes, waits: Waits, cancelled: bool
) -> None:
    @hf.workflow
    async def one() -> list[Any]:
        task = TASKS["one"] = asyncio.create_task(hf.first(ANSWERS.recv(), stubborn()))
        try:
            return list(await task)
        except asyncio.CancelledError:
            return ["cancelled", await ANSWERS.recv(timeout=0, default="nothing")]

    RELEASE["stubborn"] = asyncio.Event()
    rt = await processes.runtime(one)
    to = await rt.start(one(), id="one")
    await until(lambda: _ready_to_lose(to.id, waits), "the body runs")
    await to.send(ANSWERS, "kept")
    await until(lambda: _ran("asked to end"), "the body is asked to end")
    assert not TASKS["one"].done()
    if cancelled:
        TASKS["one"].cancel()
    RELEASE["stubborn"].set()
    assert await within(5, to.result()) == (["cancelled", "kept"] if cancelled else [0, "kept"])


async def _ready_to_lose(workflow_id: str, waits: Waits) -> bool:
    return waits.times("message", workflow_id, "answers") > 0


@hf.workflow
async def crossroads(topics: int) -> list[Any]:
    said: list[Any] = []

    async def branch(number: int) -> None:
        for _ in range(3):
            index, value = await hf.first(
                hf.recv(f"{number}"), hf.recv([f"{number + 1}", f"{number + 2}"]), work(str(number))
            )
            said.append([number, index, value])
            if index == 2:
                await hf.first(hf.recv(f"{number}"), hf.sleep(0.002))
        async with hf.timeout(0.005 * number):
            try:
                await hf.recv("never")
            finally:
                said.append([number, "late"])

    done = await asyncio.gather(*(branch(number) for number in range(topics)), return_exceptions=True)
    said.append([type(one).__name__ for one in done])
    await hf.recv("end")
    return said


async def test_w4a_branches_go_on_in_the_same_order_in_a_replay(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    """What was said, in which order, is the same when nothing is done any more but replaying."""
    rt = await processes.runtime(crossroads)
    handles = [await rt.start(crossroads(4), id=f"w{number}") for number in range(4)]
    sent = 0
    for handle in handles:
        for topic in range(6):
            await handle.send(str(topic), sent := sent + 1)
    for handle in handles:
        await waits.on("message", handle.id, "end")
    before = await rows(database, "steps", "messages")
    ran = len(RAN)
    waits.forget()
    await processes.leave(rt)
    rt = await processes.runtime(crossroads)
    for handle in handles:
        await waits.on("message", handle.id, "end")
    assert await rows(database, "steps", "messages") == before
    assert len(RAN) == ran
    for handle in handles:
        run = rt.executor.runs[handle.id]
        assert run.turns.unreplayed is None
        await rt.send(handle.id, None, "end")
        said = await within(PATIENCE, rt.handle(crossroads, handle.id).result())
        assert said[-1] == ["WaitTimeout"] * 4
        # A step id of a branch is "<branch>.<call>": the firsts in the order in which they were recorded.
        recorded = [
            (int(row["step_id"].split(".")[0]) - 1, row["choice"])
            for row in await database.fetch(
                "select step_id, choice from holdfast.steps where workflow_id = $1 and kind = 'first' "
                "and name like '%step%' order by seq",
                handle.id,
            )
        ]
        told = [(number, index) for number, index, *_ in said[:-1] if index != "late"]
        assert [(number, min(choice, 2) if choice < 2 else choice - 1) for number, choice in recorded] == told


async def test_w10_cancelling_the_workflow_interrupts_a_first(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    cleaned: list[str] = []

    @hf.workflow
    async def interrupted() -> None:
        try:
            await hf.first(ANSWERS.recv(), slow_step(), waiting_child(), timeout=HOUR)
        finally:
            cleaned.append(await ANSWERS.recv(timeout=0, default="clean"))

    rt = await processes.runtime(interrupted, waiting_child)
    handle = await rt.start(interrupted(), id="one")
    await waits.on("message", "one", "answers")
    await until(lambda: _ran("begun 2"), "the body runs")
    assert await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, handle.result())
    assert cleaned == ["clean"]
    assert RAN == ["begun 2", "ended"]
    assert (await row_of(database, "4"))[:2] == ("first", 2)
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, rt.handle("one/3").result())


async def test_w11_leaving_ends_a_step_in_a_first_and_it_begins_again_elsewhere(
    processes: Processes, waits: Waits
) -> None:
    first = await processes.runtime(racing_step)
    await first.start(racing_step(), id="one")
    await until(lambda: _ran("begun 2"), "the body runs")
    await processes.leave(first)
    assert RAN == ["begun 2", "ended"]
    second = await processes.runtime(racing_step)
    await until(lambda: _twice("begun 2"), "the body runs again")
    await second.send("one", "x", ANSWERS)
    assert await within(5, second.handle("one").result()) == [0, "x"]


async def _twice(what: str) -> bool:
    return RAN.count(what) == 2


# What is refused


async def test_what_does_not_wait_is_refused_with_a_remedy(processes: Processes) -> None:
    @hf.transaction
    async def book(connection: Connection) -> None:
        raise AssertionError

    awaited: list[Any] = []

    @hf.workflow
    async def refused() -> list[str]:
        said: list[str] = []
        calls: list[Callable[[], Any]] = [
            lambda: hf.first(),  # type: ignore[call-overload]
            lambda: hf.first(hf.send("x", 1)),
            lambda: hf.first(URL.set("x")),
            lambda: hf.first(hf.write_stream("s", 1)),
            lambda: hf.first(hf.close_stream("s")),
            lambda: hf.first(hf.start(quick_child("x"))),
            lambda: hf.first(hf.now(), hf.uuid(), hf.random()),
            lambda: hf.first(book()),
            lambda: hf.first(hf.first(ANSWERS.recv())),
            lambda: hf.first(asyncio.sleep(1)),
            lambda: hf.first(asyncio.get_running_loop().create_future()),  # type: ignore[call-overload]
            lambda: hf.first(ANSWERS.recv(), timeout=-1),
        ]
        for call in calls:
            try:
                call()
            except (TypeError, ValueError) as error:
                said.append(str(error))
        used = ANSWERS.recv(timeout=0, default="")
        await used
        for wait in (used, *awaited):
            try:
                hf.first(wait)
            except RuntimeError as error:
                said.append(str(error))
        handed = ANSWERS.recv()
        await hf.first(handed, hf.sleep(0))
        try:
            await handed
        except RuntimeError as error:
            said.append(str(error))
        return said

    rt = await processes.runtime(refused, quick_child)
    said = await rt.run(refused())
    assert len(said) == 14
    remedies = [
        "something to wait for",
        *["send: it does not wait", "set_event: it does not", "write_stream: it", "close_stream: it"],
        "hand over the call",
        "value: it does not wait",
        "child workflow",
        "its alternatives",
        "holdfast.sleep",
        "Future",
        "negative",
        "make it again",
        "handed over",
    ]
    for text, remedy in zip(said, remedies, strict=True):
        assert remedy in text


async def test_first_works_in_workflows_only(processes: Processes) -> None:
    @hf.step
    async def inside() -> list[str]:
        said = []
        for call in (lambda: hf.first(work("x")), lambda: hf.first_of(x=work("x"))):
            try:
                call()
            except hf.NotInWorkflow as error:
                said.append(str(error))
        return said

    @hf.workflow
    async def outer() -> list[str]:
        return await inside()

    with pytest.raises(hf.NotInWorkflow, match=r"asyncio\.wait"):
        hf.first(work("x"))
    rt = await processes.runtime(outer)
    assert all("inside a step" in text for text in await rt.run(outer()))


async def test_a_first_over_many(processes: Processes) -> None:
    @hf.workflow
    async def many() -> list[Any]:
        await hf.send(hf.current().workflow_id, "x", "topic 57")
        return list(await hf.first(*(hf.recv(f"topic {number}") for number in range(60))))

    rt = await processes.runtime(many)
    assert await rt.run(many()) == [57, "x"]


async def test_timedelta_is_a_timeout(processes: Processes) -> None:
    @hf.workflow
    async def short() -> object:
        return await hf.first(ANSWERS.recv(), timeout=timedelta(milliseconds=5))

    rt = await processes.runtime(short)
    assert await rt.run(short()) is None


# Children that are being started while somebody looks


@hf.workflow
async def siblings() -> list[Any]:
    """The sibling's recv was called before, and looks while the children of the first are being started."""

    async def decide() -> Any:  # noqa: ANN401 - whoever wins
        return await hf.first(waiting_child(), waiting_child(), waiting_child(), ANSWERS.recv())

    return list(await asyncio.gather(ANSWERS.recv(), decide()))


async def test_m7_w8_a_sibling_that_looks_meanwhile_finds_no_child_missing(
    processes: Processes, points: Points, waits: Waits
) -> None:
    rt = await processes.runtime(siblings, waiting_child)
    bell = _keys.wake_key("message", "one", "answers")
    points.at("start.after_commit", lambda: rt.engine.waiters.wake(bell))
    handle = await rt.start(siblings(), id="one")
    await waits.on("message", "one", "answers", times=3)
    await handle.send(ANSWERS, "a")
    await handle.send(ANSWERS, "b")
    assert await within(10, handle.result()) == ["a", [3, "b"]]
