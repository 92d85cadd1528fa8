"""Lives that end, or are cancelled, in the moment between two records: the next one sees the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import holdfast as hf
from holdfast._run import claiming, turns
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, within
from tests.runtime.witness import journal, quick, state, until

GO = hf.Topic[str]("go")
LOG = hf.Stream[str]("log")


class Moments:
    """What the bodies of steps and the test wait for."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.cleaning = asyncio.Event()
        self.cleaned = asyncio.Event()
        self.told = asyncio.Event()


now: list[Moments] = []


@pytest.fixture
def moments() -> Moments:
    now[:] = [Moments()]
    return now[0]


@hf.step
async def say(value: Any) -> Any:  # noqa: ANN401 - whatever it is told
    return value


# The function returns with a completed call not yet seen


@hf.step
async def fail_at_the_gate() -> None:
    await now[0].gate.wait()
    raise LookupError("as always")


@hf.step
async def pass_the_gate() -> str:
    await now[0].gate.wait()
    return "through"


@hf.workflow
async def gathers() -> None:
    await asyncio.gather(fail_at_the_gate(), pass_the_gate())


@hf.workflow
async def takes_the_first() -> str:
    tasks = [asyncio.ensure_future(pass_the_gate()) for _ in range(3)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


@pytest.mark.parametrize("workflow", [gathers, takes_the_first])
async def test_w5_w7_a_function_that_leaves_others_behind_ends_again_after_a_crash_at_its_end(
    processes: Processes,
    database: Connection,
    points: Points,
    moments: Moments,
    workflow: hf.Workflow[[], Any],
) -> None:
    """What it leaves behind is recorded in the same batch, and its turn does not come, now as then."""
    rt = await processes.runtime(workflow, settings=quick())
    died = asyncio.Event()

    def die() -> None:
        rt.executor.lost()
        died.set()

    points.at("finish.before_commit", die)
    points.at("step.before_body", moments.gate.set, nth=2 if workflow is gathers else 3)
    await rt.start(workflow(), id="one")
    await within(5, died.wait())
    await processes.leave(rt)
    assert len(await journal(database, "one")) == (2 if workflow is gathers else 3)
    rt = await processes.runtime(workflow, settings=quick())
    ended = within(5, rt.handle("one").result())
    if workflow is gathers:
        with pytest.raises(hf.WorkflowFailed) as failure:
            await ended
        assert isinstance(failure.value.__cause__, LookupError)
    else:
        assert await ended == "through"


# A message whose taker was cancelled, and nobody lived to give it back


@hf.workflow
async def drops_a_message() -> list[str]:
    said: list[str] = []

    async def fail() -> None:
        await hf.recv("a")
        raise LookupError

    async def take() -> None:
        said.append(f"taken {await hf.recv('b')}")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(take())
    except* LookupError:
        said.append("failed")
    return [*said, str(await hf.recv("b", timeout=0, default="lost"))]


@pytest.mark.parametrize("lives", [1, 2])
async def test_m8_a_message_is_given_back_by_the_next_life_if_the_last_one_could_not(
    processes: Processes, database: Connection, points: Points, waits: Waits, lives: int
) -> None:
    rt = await processes.runtime(drops_a_message, settings=quick())
    await rt.start(drops_a_message(), id="one")
    await waits.on("message", "one", "a")
    await waits.on("message", "one", "b")
    await database.execute(
        "insert into holdfast.messages (workflow_id, topic, payload, created_at) "
        "values ('one', 'a', '1', now()), ('one', 'b', '2', now())"
    )
    killed = points.kill(rt, "recv.before_claim", "after")
    rt.engine.waiters.wake_all()
    await within(5, killed.wait())
    await processes.leave(rt)
    assert len(await journal(database, "one")) == 2
    for _ in range(lives - 1):  # dies again, when it is about to give the message back
        rt = await processes.runtime(drops_a_message, settings=quick())
        await within(5, points.kill(rt, "writer.before_commit", "before").wait())
        await processes.leave(rt)
    rt = await processes.runtime(drops_a_message, settings=quick())
    assert await within(5, rt.handle("one").result()) == ["failed", "2"]


# The body of a step with a timeout of its own


@hf.step
async def tidies_up() -> str:
    """Its own timeout ends, after some cleaning up, nothing but a part of it."""
    try:
        async with asyncio.timeout(0.01):
            try:
                await asyncio.Event().wait()
            finally:
                now[0].cleaning.set()
                await now[0].cleaned.wait()
    except TimeoutError:
        pass
    await now[0].told.wait()
    return "tidy"


@hf.workflow
async def beside_a_tidy_one() -> list[str]:
    async def tell() -> str:
        said = await GO.recv()
        now[0].told.set()
        return said

    return list(await asyncio.gather(tidies_up(), tell()))


async def test_w15_a_body_that_ends_its_own_cancelling_holds_up_nobody(
    processes: Processes, database: Connection, moments: Moments
) -> None:
    rt = await processes.runtime(beside_a_tidy_one, settings=quick())
    handle = await rt.start(beside_a_tidy_one(), id="one")
    await within(5, moments.cleaning.wait())
    await handle.send(GO, "told")
    await until(lambda: _recorded(database, 1), "recorded")
    assert not moments.told.is_set()
    moments.cleaned.set()
    assert await within(5, handle.result()) == ["tidy", "told"]


async def _recorded(database: Connection, count: int) -> bool:
    return len(await journal(database, "one")) == count


# Two timeouts in one task


@hf.step
async def cleans_up(waits: bool) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        if waits:
            now[0].cleaning.set()
            await now[0].cleaned.wait()


lives: list[list[str]] = []


@hf.workflow
async def times_out_twice() -> list[str]:
    order: list[str] = []

    async def twice() -> None:
        for waits in (False, True):
            try:
                async with asyncio.timeout(0.02):
                    await cleans_up(waits)
            except TimeoutError:
                order.append("late")

    async def hear() -> None:
        order.append(await GO.recv())

    await asyncio.gather(twice(), hear())
    lives.append(order)
    await GO.recv()
    return order


async def test_w4a_the_second_timeout_in_a_task_is_seen_in_the_same_order_again(
    processes: Processes, database: Connection, moments: Moments, waits: Waits
) -> None:
    lives.clear()
    rt = await processes.runtime(times_out_twice, settings=quick())
    handle = await rt.start(times_out_twice(), id="one")
    await within(5, moments.cleaning.wait())
    await handle.send(GO, "heard")
    await until(lambda: _heard(database), "recorded")
    moments.cleaned.set()
    await waits.on("message", "one", "go", times=2)
    await processes.leave(rt)
    rt = await processes.runtime(times_out_twice, settings=quick())
    await rt.send("one", "end", GO)
    assert sorted(await within(5, rt.handle("one").result())) == ["heard", "late", "late"]
    assert lives[0] == lives[1]


async def _heard(database: Connection) -> bool:
    return "recv" in {kind for _, kind, _ in await journal(database, "one")}


# Cancelled first, stuck afterwards


@hf.workflow(name="changing")
async def calls_in_a_branch() -> None:
    async def one() -> None:
        await say("in a branch")

    await asyncio.gather(one(), GO.recv())


@hf.workflow(name="changing")
async def calls_no_more() -> None:
    await asyncio.gather(GO.recv(), say("instead"))


async def test_w10_w5_what_is_cancelled_while_nobody_runs_it_ends_though_its_code_has_changed(
    processes: Processes, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MISSING_AFTER", 0.2)
    rt = await processes.runtime(calls_in_a_branch, settings=quick())
    await rt.start(calls_in_a_branch(), id="one")
    await until(lambda: _recorded(database, 1), "recorded")
    await processes.leave(rt)
    client = await processes.client()
    await client.cancel("one")
    await processes.runtime(calls_no_more, settings=quick())
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, client.handle("one").result())


# In which order the cancelled leave


@hf.step
async def cleans_up_slowly() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        now[0].cleaning.set()
        await now[0].cleaned.wait()


@hf.workflow
async def compensates() -> None:
    """Whoever comes first compensates."""
    first = True

    async def guard(name: str, call: Any) -> None:  # noqa: ANN401 - a durable call
        nonlocal first
        try:
            await call()
        except asyncio.CancelledError:
            if first:
                first = False
                await LOG.write(name)
                await GO.recv()
            raise

    async with asyncio.TaskGroup() as group:
        group.create_task(guard("one", cleans_up_slowly))
        group.create_task(guard("two", lambda: hf.recv("never")))


async def test_w4a_w10_the_cancelled_leave_in_the_same_order_in_a_replay(
    processes: Processes, database: Connection, moments: Moments, waits: Waits
) -> None:
    rt = await processes.runtime(compensates, settings=quick())
    handle = await rt.start(compensates(), id="one")
    await waits.on("message", "one", "never")
    await handle.cancel()
    await within(5, moments.cleaning.wait())
    await until(lambda: _recorded(database, 1), "one of them is recorded as interrupted")
    moments.cleaned.set()
    await waits.on("message", "one", "go")
    before = await journal(database, "one")
    await processes.leave(rt)
    rt = await processes.runtime(compensates, settings=quick(cleanup_time=20))
    await rt.send("one", "on", GO)
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, rt.handle("one").result())
    after = await journal(database, "one")
    assert after[: len(before)] == before
    assert [name for _, kind, name in after if kind in ("write_stream", "recv")] == ["never", "log", "go"]
    assert await rt.read_stream("one", LOG).collect() == ["one"]


# Cancelled behind a deadline that had passed


@hf.step
async def charge() -> None:
    pass


@hf.workflow
async def refunds() -> None:
    done: list[str] = []
    try:
        try:
            async with hf.timeout(0.01):
                await hf.recv("approval")
        except TimeoutError:
            pass
        await charge()
        done.append("charge")
        await hf.recv("shipped")
    finally:
        for one in done:
            await GO.recv()
            await LOG.write(f"refund {one}")


async def test_w2_w10_a_cleanup_is_taken_up_again_behind_a_block_that_had_expired(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(refunds, settings=quick(cleanup_time=20))
    handle = await rt.start(refunds(), id="one")
    await waits.on("message", "one", "shipped")
    await handle.cancel()
    await waits.on("message", "one", "go")
    await processes.leave(rt)
    rt = await processes.runtime(refunds, settings=quick(cleanup_time=20))
    await waits.on("message", "one", "go", times=2)
    await rt.send("one", "on", GO)
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, rt.handle("one").result())
    assert await rt.read_stream("one", LOG).collect() == ["refund charge"]


# An each with another limit than before


@hf.step
async def one_of_them(item: int) -> int:
    if item == 0:
        await now[0].gate.wait()
    return item


def each_at_most(limit: int) -> hf.Workflow[[], list[int]]:
    @hf.workflow(name="each at most")
    async def at_most() -> list[int]:
        found: list[int] = []
        async for outcome in hf.each(one_of_them, range(20), limit=limit):
            found.append(outcome.value)
            if len(found) == 1:
                await GO.recv()
        return found

    return at_most


@pytest.mark.parametrize("limit", [1, 2, 5, 30])
async def test_w2_w5_each_goes_on_with_another_limit(
    processes: Processes, database: Connection, moments: Moments, waits: Waits, limit: int
) -> None:
    before, after = each_at_most(10), each_at_most(limit)
    rt = await processes.runtime(before, settings=quick())
    await rt.start(before(), id="one")
    await waits.on("message", "one", "go")
    await until(lambda: _items(database, 9), "recorded")
    await processes.leave(rt)
    moments.gate.set()
    rt = await processes.runtime(after, settings=quick())
    await rt.send("one", "on", GO)
    assert sorted(await within(5, rt.handle(after, "one").result())) == list(range(20))


async def _items(database: Connection, count: int) -> bool:
    query = "select count(*) from holdfast.steps where step_id like '%#%' and finished_at is not null"
    return bool(await database.fetchval(query) >= count)


# No connection to be had


@hf.transaction
async def holds_a_connection(connection: Any) -> str:  # noqa: ANN401 - the driver's
    await now[0].gate.wait()
    return str(await connection.fetchval("select 'done'"))


@hf.workflow
async def transacts() -> str:
    return await holds_a_connection()


async def test_w12_that_all_connections_are_in_use_is_no_outcome(
    processes: Processes, moments: Moments, caplog: pytest.LogCaptureFixture
) -> None:
    settings = quick(pool_size=1, database_patience=2)
    rt = await processes.runtime(transacts, settings=settings)
    handles = [await rt.start(transacts()) for _ in range(2)]
    async with asyncio.timeout(15):
        while "waits for a connection" not in caplog.text:
            await asyncio.sleep(0.01)
    moments.gate.set()
    for handle in handles:
        assert await within(5, handle.result()) == "done"


@hf.workflow
async def comes_later() -> str:
    return str(await GO.recv())


async def test_w13_what_is_taken_over_does_not_wait_behind_transactions(
    processes: Processes, moments: Moments, waits: Waits
) -> None:
    """Its journal is read on a connection that is not the users'."""
    first = await processes.runtime(comes_later, settings=quick())
    await first.start(comes_later(), id="later")
    await waits.on("message", "later", "go")
    second = await processes.runtime(transacts, comes_later, settings=quick(pool_size=1))
    held = await second.start(transacts())
    await until(lambda: _in_use(second), "in use")
    await processes.leave(first)
    await second.send("later", "on", GO)
    assert await within(5, second.handle("later").result()) == "on"
    moments.gate.set()
    assert await within(5, held.result()) == "done"


async def _in_use(rt: hf.Runtime) -> bool:
    return rt.engine.pool.statistics().busy == 1


# Many


@hf.workflow
async def hashes() -> list[int]:
    async def nothing() -> None:
        await say("nothing")

    tasks = [asyncio.create_task(nothing()) for _ in range(3)]
    await asyncio.gather(*tasks)
    await GO.recv()
    return [hash(task) for task in tasks]


async def test_w4a_tasks_hash_alike_in_a_replay_and_a_fork_and_unlike_those_of_other_workflows(
    processes: Processes, waits: Waits
) -> None:
    found: list[set[int]] = []
    rt = await processes.runtime(hashes, settings=quick())
    for workflow_id in ("a", "b"):
        await rt.start(hashes(), id=workflow_id)
        await waits.on("message", workflow_id, "go")
    fork = await rt.handle("a").fork(from_step="1.1", id="c")
    await waits.on("message", "c", "go")
    again = await fork.fork(from_step="1.1", id="d")
    for handle in (rt.handle("a"), rt.handle("b"), fork, again):
        await handle.send(GO, "on")
        found.append(set(await within(5, handle.result())))
    assert found[0] == found[2] == found[3]
    assert not found[0] & found[1]
    assert all(len(hashed) == 3 for hashed in found)


async def test_w13_journals_are_read_some_at_a_time(
    processes: Processes, database: Connection, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "MOST_JOURNALS", 2)
    rt = await processes.runtime(hashes, settings=quick())
    ids = [str(number) for number in range(5)]
    for workflow_id in ids:
        await rt.start(hashes(), id=workflow_id)
        await waits.on("message", workflow_id, "go")
    await processes.leave(rt)
    rt = await processes.runtime(hashes, settings=quick())
    for workflow_id in ids:
        await rt.send(workflow_id, "on", GO)
        await within(5, rt.handle(workflow_id).result())
    assert {await state(database, workflow_id) for workflow_id in ids} == {"SUCCESS"}
    assert await database.fetchval("select count(*) from holdfast.steps where kind = 'step'") == 3 * 5
