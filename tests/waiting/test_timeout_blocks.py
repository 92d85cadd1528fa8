"""`async with hf.timeout(s)`: one durable deadline over every durable call in the block [W9]."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import Any

import anyio
import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import Points, Processes, Waits, rows, settled, within
from tests.runtime.witness import PATIENCE, Signals, journal, quick, until

HOUR = 3600.0
SOON = 0.05
WORDS = hf.Topic[str]("words")
RAN: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
async def clock(dsn: str) -> AsyncIterator[DatabaseClock]:
    async with DatabaseClock(dsn) as clock:
        yield clock


@hf.workflow
async def never_ends() -> None:
    await hf.recv("never")


@hf.step
async def endless() -> None:
    RAN.append("begun")
    try:
        await asyncio.Event().wait()
    finally:
        RAN.append("ended")


@hf.step
async def work() -> str:
    RAN.append("worked")
    return "worked"


@hf.transaction
async def book(connection: Connection) -> None:
    await connection.execute("insert into public.booked values (1)")
    await asyncio.Event().wait()


async def outcomes(database: Connection, workflow_id: str = "one") -> list[tuple[Any, ...]]:
    """Step id, kind, outcome and choice of every completed call, in order."""
    found = await database.fetch(
        "select step_id, kind, outcome, choice from holdfast.steps "
        "where workflow_id = $1 and finished_at is not null order by seq",
        workflow_id,
    )
    return [tuple(row) for row in found]


CALLS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "recv": lambda: WORDS.recv(),
    "recv with timeout": lambda: WORDS.recv(timeout=HOUR),
    "several": lambda: hf.recv(["a", "b"]),
    "event": lambda: hf.get_event("other", "key"),
    "sleep": lambda: hf.sleep(HOUR),
    "child": lambda: never_ends(),
    "first": lambda: hf.first(WORDS.recv(), hf.sleep(HOUR)),
    "first with step": lambda: hf.first(WORDS.recv(), endless()),
    "step": lambda: endless(),
    "transaction": lambda: book(),
}


@hf.workflow
async def bounded(which: str, seconds: float = SOON) -> str:
    try:
        async with hf.timeout(seconds):
            await CALLS[which]()
    except TimeoutError as error:
        await hf.set_event("late", type(error).__name__)
        return await WORDS.recv()
    return "in time"


@pytest.mark.parametrize("which", CALLS)
async def test_w9_the_deadline_ends_any_call_and_a_replay_ends_there_too(
    processes: Processes, database: Connection, waits: Waits, which: str
) -> None:
    await database.execute("create table public.booked (x integer)")
    rt = await processes.runtime(bounded, never_ends)
    # A body that has no time at all does not begin.
    await rt.start(bounded(which, 2.0 if "step" in which else SOON), id="one")
    assert await within(PATIENCE, rt.get_event("one", "late")) == "WaitTimeout"
    seen = await outcomes(database)
    ended = [row for row in seen if row[2] == 13]
    assert len(ended) == 1
    assert ended[0][3] == 0
    assert await database.fetchval("select count(*) from public.booked") == 0
    if "step" in which:
        assert RAN == ["begun", "ended"]
    await waits.on("message", "one", "words")
    before = await rows(database, "steps", "messages", "events")
    ran = list(RAN)
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(bounded, never_ends)
    await waits.on("message", "one", "words")
    assert await rows(database, "steps", "messages", "events") == before
    assert ran == RAN
    await rt.send("one", "after all", WORDS)
    assert await within(PATIENCE, rt.handle("one").result()) == "after all"


async def test_w9_nothing_is_written_for_a_block_that_never_waits(
    processes: Processes, database: Connection
) -> None:
    @hf.workflow
    async def brisk() -> str:
        async with hf.timeout(HOUR) as limit:
            await WORDS.send(hf.current().workflow_id, "here")
            word = await WORDS.recv()
        assert not limit.expired
        return word

    rt = await processes.runtime(brisk)
    assert await rt.run(brisk(), id="one") == "here"
    found = await database.fetch("select step_id from holdfast.steps order by step_id")
    assert [row[0] for row in found] == ["2", "3"]


async def test_w9_after_a_crash_only_the_rest_is_waited(
    processes: Processes, database: Connection, clock: DatabaseClock
) -> None:
    @hf.workflow
    async def hour() -> str:
        try:
            async with hf.timeout(timedelta(hours=1)):
                await work()
                await WORDS.recv()
        except TimeoutError:
            return "late"
        return "in time"

    async def waiting() -> bool:
        return await _deadline(database) is not None

    rt = await processes.runtime(hour, settings=quick(lease=60))
    await rt.start(hour(), id="one")
    await until(waiting, "a deadline")
    deadline = await _deadline(database)
    for _ in range(2):
        await clock.advance(HOUR / 3)
        await processes.leave(rt)
        rt = await processes.runtime(hour, settings=quick(lease=60))
        with pytest.raises(hf.WaitTimeout):
            await rt.handle("one").result(timeout=0.05)
        assert await _deadline(database) == deadline
    await clock.advance(HOUR / 3 + 1)
    assert await rt.handle("one").result(PATIENCE) == "late"
    assert RAN == ["worked"]


async def test_w9_a_deadline_goes_by_the_databases_clock(
    processes: Processes, database: Connection, clock: DatabaseClock
) -> None:
    """What waits looks again when it is moved, in the process that has entered the block too."""

    @hf.workflow
    async def hour() -> list[str]:
        said = []
        for _ in range(2):
            try:
                async with hf.timeout(HOUR), hf.timeout(2 * HOUR):
                    await asyncio.gather(
                        hf.first(WORDS.recv(), hf.recv("b")), hf.recv(["b", "c"]), hf.sleep(1e8)
                    )
            except TimeoutError:
                said.append("late")
        return said

    async def waiting(times: int) -> bool:
        return len(await database.fetch("select from holdfast.steps where kind = 'timeout'")) == times

    rt = await processes.runtime(hour, settings=quick(lease=60))
    to = await rt.start(hour(), id="one")
    for times in (2, 4):
        await until(lambda times=times: waiting(times), "deadlines")  # type: ignore[misc]
        await clock.advance(HOUR / 2)
        with pytest.raises(hf.WaitTimeout):
            await to.result(timeout=0.05)
        await clock.advance(HOUR / 2 + 1)
    assert await to.result(PATIENCE) == ["late", "late"]


async def _deadline(database: Connection) -> object:
    return await database.fetchval("select deadline from holdfast.steps where kind = 'timeout'")


@pytest.mark.parametrize("word", ["there", None])
async def test_w9_a_deadline_that_passed_while_nobody_ran_still_makes_one_attempt(
    processes: Processes, database: Connection, clock: DatabaseClock, word: str | None
) -> None:
    @hf.workflow
    async def hour() -> str:
        try:
            async with hf.timeout(HOUR):
                return await WORDS.recv()
        except TimeoutError:
            return "late"

    async def waiting() -> bool:
        return await _deadline(database) is not None

    rt = await processes.runtime(hour, settings=quick(lease=60))
    await rt.start(hour(), id="one")
    await until(waiting, "a deadline")
    await processes.leave(rt)
    await clock.advance(24 * HOUR)
    if word is not None:
        await (await processes.client()).send("one", word, WORDS)
    rt = await processes.runtime(hour, settings=quick(lease=60))
    assert await rt.handle("one").result(PATIENCE) == (word or "late")


async def test_past_the_deadline_effects_are_refused_and_steps_do_not_begin(
    processes: Processes, database: Connection
) -> None:
    said: list[str] = []

    async def tell(name: str, call: hf.Wait[Any]) -> None:
        try:
            await call
        except asyncio.CancelledError:
            said.append(name)

    @hf.workflow
    async def late() -> list[str]:
        me = hf.current().workflow_id
        await WORDS.send(me, "waits already")
        try:
            async with hf.timeout(0) as limit:
                await tell("send", hf.send(me, "no"))
                await tell("set", hf.set_event("no", 1))
                await tell("write", hf.write_stream("no", 1))
                await tell("close", hf.close_stream("no"))
                await tell("start", hf.start(never_ends()))
                await tell("child", never_ends())
                await tell("step", work())
                await tell("first", hf.first(hf.recv("never"), work()))
                await tell("transaction", book())
                await tell("now", hf.now())
                await tell("sleep", hf.sleep(0.01))
                assert limit.expired
                await WORDS.recv()
                await tell("recv", WORDS.recv())
                await tell("event", hf.get_event("other", "key"))
        except TimeoutError:
            await hf.set_event("behind", "works")
            return list(said)
        return []

    rt = await processes.runtime(late, never_ends)
    names = [
        "send",
        "set",
        "write",
        "close",
        "start",
        "child",
        "step",
        "first",
        "transaction",
        "now",
        "sleep",
    ]
    assert await rt.run(late(), id="one") == [*names, "recv", "event"]
    assert RAN == []
    assert await rt.get_event("one", "behind") == "works"
    assert await database.fetchval("select count(*) from holdfast.workflows") == 1
    assert await database.fetchval("select count(*) from holdfast.events") == 1
    kinds = [kind for _, kind, outcome, choice in await outcomes(database) if (outcome, choice) == (13, 0)]
    assert len(kinds) == 13


# Whose deadline


@pytest.mark.parametrize(
    ("block", "own", "expected"),
    [(HOUR, SOON, ["WaitTimeout", 3]), (SOON, HOUR, ["TimeoutError of the block", 13])],
)
async def test_of_a_block_and_a_timeout_in_it_the_nearer_wins(
    processes: Processes, database: Connection, block: float, own: float, expected: list[Any]
) -> None:
    @hf.workflow
    async def both() -> str:
        try:
            async with hf.timeout(block):
                try:
                    await WORDS.recv(timeout=own)
                except TimeoutError as error:
                    return type(error).__name__
        except TimeoutError:
            return "TimeoutError of the block"
        return ""

    rt = await processes.runtime(both)
    assert await rt.run(both(), id="one") == expected[0]
    assert (await outcomes(database))[-1][2] == expected[1]


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [(SOON, HOUR, "outer"), (HOUR, SOON, "inner, then here"), (SOON, SOON, "outer")],
)
async def test_blocks_nest_and_the_nearer_deadline_ends_its_own_block(
    processes: Processes, database: Connection, outer: float, inner: float, expected: str
) -> None:
    @hf.workflow
    async def nested() -> str:
        try:
            async with hf.timeout(outer):
                try:
                    async with hf.timeout(inner):
                        await WORDS.recv()
                except TimeoutError:
                    return f"inner, then {await WORDS.recv()}"
        except TimeoutError:
            return "outer"
        return ""

    rt = await processes.runtime(nested)
    to = await rt.start(nested(), id="one")
    if inner < outer:
        await until(lambda: _expired(database), "the inner deadline has passed")
        await to.send(WORDS, "here")
    assert await within(PATIENCE, to.result()) == expected
    ended = [row for row in await outcomes(database) if row[2] == 13]
    assert [row[3] for row in ended] == ([1] if inner < outer else [0])


async def _expired(database: Connection) -> bool:
    return any(row[2] == 13 for row in await outcomes(database))


@hf.workflow
async def branches(how: str) -> list[str]:
    got: list[str] = []

    async def branch(topic: str) -> None:
        got.append(str(await hf.recv(topic)))

    try:
        async with hf.timeout(SOON):
            if how == "gather":
                await asyncio.gather(branch("a"), branch("b"))
            elif how == "exceptions":
                await asyncio.gather(branch("a"), branch("b"), return_exceptions=True)
            elif how == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(branch("a"))
                    group.create_task(branch("b"))
            elif how == "anyio":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(branch, "a")
                    tasks.start_soon(branch, "b")
            elif how == "wait_for":
                await asyncio.wait_for(branch("b"), HOUR)
            elif how == "swallowed":
                with contextlib.suppress(asyncio.CancelledError):
                    await branch("b")
            else:
                async with asyncio.timeout(HOUR):
                    await branch("b")
    except TimeoutError as error:
        got.append(type(error).__name__)
        await hf.recv("end")
    return got


@pytest.mark.parametrize(
    "how", ["gather", "exceptions", "group", "anyio", "wait_for", "swallowed", "asyncio.timeout"]
)
async def test_calls_of_tasks_in_the_block_belong_to_it_live_and_in_a_replay(
    processes: Processes, database: Connection, waits: Waits, how: str
) -> None:
    rt = await processes.runtime(branches)
    await rt.start(branches(how), id="one")
    if how in ("gather", "exceptions", "group", "anyio"):
        await rt.send("one", "x", "a")
    await waits.on("message", "one", "end")
    before = await rows(database, "steps")
    await processes.leave(rt)
    rt = await processes.runtime(branches)
    await waits.on("message", "one", "end", times=2)
    assert await rows(database, "steps") == before
    await rt.send("one", "x", "end")
    got = await within(PATIENCE, rt.handle(branches, "one").result())
    assert got[-1] == "WaitTimeout"
    assert got[:-1] in ([], ["x"])


async def test_each_branch_may_have_a_block_of_its_own(processes: Processes, database: Connection) -> None:
    @hf.workflow
    async def own() -> list[str]:
        async def branch(seconds: float, topic: str) -> str:
            try:
                async with hf.timeout(seconds):
                    return str(await hf.recv(topic))
            except TimeoutError:
                await hf.send(hf.current().workflow_id, "from the late one", "b")
                return "late"

        return list(await asyncio.gather(branch(SOON, "a"), branch(HOUR, "b")))

    rt = await processes.runtime(own)
    assert await within(PATIENCE, rt.run(own(), id="one")) == ["late", "from the late one"]


async def test_a_task_that_outlives_the_block_is_not_bound_by_it(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def outlived() -> str:
        async with hf.timeout(SOON):
            task = asyncio.create_task(WORDS.recv())
        await hf.sleep(3 * SOON)
        await hf.set_event("slept", None)
        return await task

    rt = await processes.runtime(outlived)
    to = await rt.start(outlived(), id="one")
    await rt.get_event("one", "slept")
    await to.send(WORDS, "after all")
    assert await within(PATIENCE, to.result()) == "after all"


async def test_an_error_of_the_code_goes_before_the_deadline(processes: Processes) -> None:
    @hf.workflow
    async def fails() -> str:
        try:
            async with hf.timeout(0):
                try:
                    await WORDS.recv()
                finally:
                    raise ValueError("mine")
        except ValueError as error:
            return str(error)

    rt = await processes.runtime(fails)
    assert await rt.run(fails()) == "mine"


# Other ends


async def test_w10_cancelling_the_workflow_goes_before_the_deadline(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    seen: list[str] = []

    @hf.workflow
    async def cancelled() -> None:
        try:
            async with hf.timeout(HOUR):
                try:
                    await WORDS.recv()
                finally:
                    await hf.set_event("cleaned", 1)
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    rt = await processes.runtime(cancelled)
    to = await rt.start(cancelled(), id="one")
    await waits.on("message", "one", "words")
    assert await to.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await within(PATIENCE, to.result())
    assert seen == ["CancelledError"]
    assert await rt.get_event("one", "cleaned") == 1
    assert [row[2] for row in await outcomes(database)] == [2, 0]


async def test_a_siblings_cancelling_is_not_taken_for_the_deadline(processes: Processes) -> None:
    @hf.workflow
    async def sibling() -> list[str]:
        said: list[str] = []

        async def inside() -> None:
            try:
                async with hf.timeout(0):
                    try:
                        await WORDS.recv()
                    except asyncio.CancelledError:
                        await asyncio.Event().wait()
            except BaseException as error:
                said.append(type(error).__name__)
                raise

        task = asyncio.create_task(inside())
        await hf.sleep(SOON)
        task.cancel()
        await asyncio.wait([task])
        return [*said, str(task.cancelled())]

    rt = await processes.runtime(sibling)
    assert await within(PATIENCE, rt.run(sibling())) == ["CancelledError", "True"]


async def test_w11_leaving_inside_a_block_is_no_timeout(processes: Processes, waits: Waits) -> None:
    seen: list[str] = []

    @hf.workflow
    async def left() -> str:
        try:
            async with hf.timeout(HOUR):
                return await WORDS.recv()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    rt = await processes.runtime(left)
    await rt.start(left(), id="one")
    await waits.on("message", "one", "words")
    await processes.leave(rt)
    assert seen in (["WorkflowStopped"], ["CancelledError"])
    rt = await processes.runtime(left)
    await rt.send("one", "x", WORDS)
    assert await within(PATIENCE, rt.handle("one").result()) == "x"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", ["recv", "step", "first"])
async def test_killed_around_the_commit_of_the_expiry(
    processes: Processes, points: Points, signals: Signals, when: str, which: str, database: Connection
) -> None:
    """The second commit is the call's own look, or the deadline; one after it, what ended."""
    rt = await processes.runtime(bounded, never_ends)
    killed = asyncio.Event()

    def kill() -> None:
        rt.executor.lost()
        killed.set()

    await rt.start(bounded(which), id="one")

    async def recorded() -> bool:
        return bool(await database.fetch("select from holdfast.steps where kind = 'timeout'"))

    await until(recorded, "the deadline is written")
    if (await outcomes(database)) == []:
        points.at(f"writer.{when}_commit", kill)
        await within(PATIENCE, killed.wait())
    await processes.leave(rt)
    rt = await processes.runtime(bounded, never_ends)
    assert await within(PATIENCE, rt.get_event("one", "late")) == "WaitTimeout"
    assert [row[2] for row in await outcomes(database)].count(13) == 1


async def test_w5_a_block_that_is_gone_or_new_is_nondeterminism(
    processes: Processes, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    @hf.workflow(name="changing")
    async def before() -> str:
        async with hf.timeout(HOUR):
            return await WORDS.recv()

    @hf.workflow(name="changing")
    async def after() -> str:
        await hf.sleep(0)
        return await WORDS.recv()

    async def parked() -> bool:
        return "parked" in caplog.text

    rt = await processes.runtime(before)
    await rt.start(before(), id="one")
    await waits.on("message", "one", "words")
    await processes.leave(rt)
    rt = await processes.runtime(after)
    await until(parked, "parked")
    await processes.leave(rt)
    rt = await processes.runtime(before)
    await rt.send("one", "x", WORDS)
    assert await within(PATIENCE, rt.handle("one").result()) == "x"


async def test_no_waiter_is_left(processes: Processes) -> None:
    rt = await processes.runtime(bounded, never_ends)
    idle = rt.statistics().waiters.waiting
    for which in ("recv", "first", "sleep"):
        await rt.start(bounded(which), id=which)
        await rt.get_event(which, "late")
        await rt.send(which, "x", WORDS)
        await rt.handle(which).result()
    await settled(rt)
    assert rt.statistics().waiters.waiting == idle


async def test_its_place_and_its_argument_are_checked(processes: Processes) -> None:
    with pytest.raises(hf.NotInWorkflow, match=r"asyncio\.timeout"):
        async with hf.timeout(1):
            pass
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            hf.timeout(seconds)
    with pytest.raises(TypeError):
        hf.timeout(None)  # type: ignore[arg-type]

    @hf.step
    async def inside() -> str:
        try:
            async with hf.timeout(1):
                return ""
        except hf.NotInWorkflow as error:
            return str(error)

    @hf.workflow
    async def outer() -> str:
        block = hf.timeout(1)
        async with block:
            pass
        with pytest.raises(RuntimeError):
            async with block:
                pass
        return await inside()

    rt = await processes.runtime(outer)
    assert "inside a step" in await rt.run(outer(), id="one")
    assert repr(hf.timeout(5)) == "<timeout of 5 s>"


async def test_the_journal_names_what_was_ended(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(bounded)
    await rt.start(bounded("recv"), id="one")
    await rt.get_event("one", "late")
    assert await journal(database, "one") == [("2", "recv", "words"), ("3", "set_event", "late")]
