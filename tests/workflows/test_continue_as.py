"""`continue_as`: an execution ends, and the next goes on in its place, with an empty journal and all else
that the workflow had [API 3].
"""

from __future__ import annotations

import asyncio

import pytest

import holdfast as hf
from holdfast import _observe
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from holdfast.testing.faults import Proxy
from tests.processes import Points, Processes, Waits, connect, settled
from tests.runtime.witness import PATIENCE, Signals, journal, quick, state, until

inbox = hf.Topic[int]("in")
out = hf.Stream[list[int]]("out")
at = hf.Event[int]("at")
seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_was_seen() -> None:
    seen.clear()


@hf.step
async def do(label: str) -> str:
    seen.append(label)
    return label


@hf.workflow
async def relay(generation: int, last: int) -> int:
    number = await inbox.recv()
    await out.write([generation, number])
    await at.set(generation)
    if generation < last:
        hf.continue_as(relay(generation + 1, last))
    return generation


@hf.workflow
async def resting() -> str:
    return str(await hf.recv("never"))


async def test_hundreds_of_executions_lose_no_message_and_take_none_twice(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(relay, settings=quick())
    handle = await rt.start(relay(0, 299), id="one")
    result = asyncio.create_task(handle.result(120))
    for number in range(0, 300, 50):
        await asyncio.gather(*(handle.send(inbox, n) for n in range(number, number + 50)))
    assert await result == 299
    values = await handle.read(out).collect()
    assert [generation for generation, _ in values] == list(range(300))
    assert sorted(number for _, number in values) == list(range(300))
    assert [item[0] for item in await database.fetch("select revision from holdfast.events order by 1")] == (
        list(range(1, 301))
    )
    assert len(await rt.steps("one")) == 3, "the journal is that of the last execution"
    assert await journal(database, "one") == [
        ("299~1", "recv", "in"),
        ("299~2", "write_stream", "out"),
        ("299~3", "set_event", "at"),
    ]
    consumed = await database.fetchval("select count(distinct consumed_by) from holdfast.messages")
    assert consumed == 300
    await settled(rt)


async def test_all_that_is_not_of_the_journal_goes_on(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def second(number: int) -> str:
        child = await hf.start(resting())
        await hf.write_stream("out", "second")
        said = f"{number} {child.id} {await hf.recv('kept')} {hf.current().workflow_name}"
        await hf.recv("go on")
        return said

    @hf.workflow
    async def first() -> str:
        await hf.start(resting())
        await hf.write_stream("out", "first")
        await hf.set_event("said", "by the first")
        await hf.send(hf.current().workflow_id, "kept message", "kept")
        hf.continue_as(second(17))

    rt = await processes.runtime(first, second, resting, settings=quick())
    handle = await rt.start(first(), id="one")
    ended = asyncio.create_task(handle.result(PATIENCE))
    await waits.on("message", "one", "go on")
    found = await handle.status()
    assert (found.status, found.name) == (hf.Status.PENDING, "second")
    assert await state(database, "one/1") == "PENDING", "children of the first live on"
    assert await handle.get("said") == "by the first"
    await handle.send("go on", None)
    assert await ended == "17 one/1~1 kept message second"
    assert await handle.read("out").collect() == ["first", "second"]
    rows = await database.fetch('select "offset", step_id from holdfast.stream_values order by 1')
    assert [tuple(row) for row in rows] == [(0, "2"), (1, "1~2")]


async def test_branches_of_a_later_execution_have_ids_of_their_own_and_replay(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def branching(generation: int) -> str:
        async def branch(label: str) -> str:
            return await do(label) + await do(label)

        said = await asyncio.gather(branch("a"), branch("b"), branch("c"))
        if generation == 0:
            hf.continue_as(branching(1))
        await hf.recv("go on")
        return "".join(said)

    rt = await processes.runtime(branching, settings=quick())
    await rt.start(branching(0), id="one")
    await waits.on("message", "one", "go on")
    ids = {step_id for step_id, _, _ in await journal(database, "one")}
    assert ids == {f"1~{birth}.{number}" for birth in (1, 2, 3) for number in (1, 2)}
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(branching, settings=quick())
    await waits.on("message", "one", "go on")
    await rt.send("one", None, "go on")
    assert await rt.handle(branching, "one").result(PATIENCE) == "aabbcc"
    assert len(seen) == 12


async def test_a_later_execution_is_fresh_until_it_is_recovered(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    @hf.workflow
    async def looks(generation: int) -> None:
        seen.append(f"{generation} {hf.current().recovering}")
        if generation == 0:
            hf.continue_as(looks(1))
        await hf.recv("never")

    rt = await processes.runtime(looks, settings=quick())
    await rt.start(looks(0), id="one")
    await waits.on("message", "one", "never")
    row = await database.fetchrow("select claims, generation, epoch from holdfast.workflows")
    assert tuple(row or ()) == (1, 1, 2)
    await processes.leave(rt)
    waits.forget()
    await processes.runtime(looks, settings=quick())
    await waits.on("message", "one", "never")
    assert seen == ["0 False", "1 False", "1 True"]


async def test_it_leaves_by_any_way_but_except_exception(processes: Processes) -> None:
    @hf.workflow
    async def leaves(way: str) -> str:
        if way == "done":
            return "done"
        try:
            if way == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.Event().wait())
                    hf.continue_as(leaves("done"))
            if way == "wait_for":
                await asyncio.wait_for(_leave(leaves("done")), 60)
            if way == "finally":
                try:
                    raise ValueError("is forgotten")
                finally:
                    hf.continue_as(leaves("done"))
            hf.continue_as(leaves("done"))
        except Exception:
            seen.append("swallowed")
        finally:
            seen.append(way)
            await do("cleaned up")
        return way

    rt = await processes.runtime(leaves, settings=quick())
    for way in ("plain", "group", "wait_for", "finally"):
        seen.clear()
        assert await rt.run(leaves(way)) == "done"
        assert seen == [way, "cleaned up"]


async def _leave(call: hf.Call[str]) -> None:
    hf.continue_as(call)


async def test_another_failure_of_the_group_counts_more(processes: Processes) -> None:
    @hf.workflow
    async def fails(generation: int) -> int:
        async def fail() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("while cleaning up")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(0)
            if not generation:
                hf.continue_as(fails(1))
        return generation

    rt = await processes.runtime(fails, settings=quick())
    with pytest.raises(hf.WorkflowFailed):
        await rt.run(fails(0))


async def test_tasks_left_over_are_cancelled_and_record_nothing(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def careless(generation: int) -> str:
        async def left_over() -> None:
            try:
                await hf.recv("never")
            finally:
                seen.append("left over")
                await hf.set_event("too late", True)

        if generation == 0:
            task = asyncio.create_task(left_over())
            await hf.recv("go on")
            assert not task.done()
            hf.continue_as(careless(1))
        await hf.recv("go on")
        return "done"

    rt = await processes.runtime(careless, settings=quick())
    handle = await rt.start(careless(0), id="one")
    await waits.on("message", "one", "never")
    await handle.send("go on", None)
    await handle.send("go on", None)
    assert await handle.result(PATIENCE) == "done"
    assert seen == ["left over"]
    assert await rt.get_events("one") == {}


async def test_it_is_refused_where_it_could_not_end_the_execution(processes: Processes) -> None:
    @hf.step
    async def inside() -> None:
        hf.continue_as(resting())

    @hf.workflow
    async def refused() -> list[str]:
        async def branch() -> None:
            hf.continue_as(resting())

        said = []
        for call in (inside, lambda: asyncio.create_task(branch())):
            try:
                await call()
            except hf.NotInWorkflow as error:
                said.append(str(error))
        for wrong in (resting, "resting", None, resting.fn):
            with pytest.raises(TypeError, match="takes a call"):
                hf.continue_as(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            hf.continue_as(resting(1))  # type: ignore[call-arg]
        with pytest.raises(hf.PayloadNotSerializable):
            hf.continue_as(relay(float("nan"), 1))  # type: ignore[arg-type]
        return said

    rt = await processes.runtime(refused, resting, settings=quick())
    in_step, in_task = await rt.run(refused())
    assert "inside a step" in in_step
    assert "not in a task" in in_task
    with pytest.raises(hf.NotInWorkflow, match="continue_as"):
        hf.continue_as(resting())


async def test_w10_asked_to_end_while_the_commit_lands_it_ends_and_keeps_its_journal(
    processes: Processes, dsn: str, waits: Waits, database: Connection, signals: Signals
) -> None:
    rt = await processes.runtime(relay, settings=quick())
    handle = await rt.start(relay(0, 5), id="one")
    await waits.on("message", "one", "in")
    async with database.transaction():
        await database.execute("update holdfast.workflows set cancelling = true")
        await handle.send(inbox, 1)
        await until(lambda: _blocked(dsn), "the commit waiting for the request to end")
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    await signals.heard("workflow.finished", workflow_id="one", status=hf.Status.CANCELLED)
    assert len(await journal(database, "one")) == 3
    assert await database.fetchval("select generation from holdfast.workflows") == 0


async def _blocked(dsn: str) -> bool:
    connection = await connect(dsn)
    query = (
        "select exists (select from pg_stat_activity where datname = current_database() "
        "and wait_event_type = 'Lock' and query like '%commit_batch%')"
    )
    try:
        return bool(await connection.fetchval(query))
    finally:
        await connection.close()


async def test_w10_in_the_clean_up_of_a_cancelled_workflow_it_changes_nothing(
    processes: Processes, waits: Waits
) -> None:
    @hf.workflow
    async def stubborn() -> None:
        try:
            await hf.recv("never")
        finally:
            hf.continue_as(stubborn())

    rt = await processes.runtime(stubborn, settings=quick())
    handle = await rt.start(stubborn(), id="one")
    await waits.on("message", "one", "never")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)


async def test_between_two_executions_it_is_enqueued_and_is_cancelled_at_once(
    processes: Processes, database: Connection, signals: Signals
) -> None:
    elsewhere = hf.WorkflowRef[[], str]("elsewhere")

    @hf.workflow
    async def leaves() -> None:
        await do("here")
        hf.continue_as(elsewhere())

    rt = await processes.runtime(leaves, settings=quick())
    handle = await rt.start(leaves(), id="one")
    await signals.heard("workflow.continued", workflow_id="one")
    found = await handle.status()
    assert (found.status, found.name, found.executor) == (hf.Status.ENQUEUED, "elsewhere", None)
    assert found.started_at is None
    assert await rt.steps("one") == []
    await handle.send("kept", 1)
    assert await handle.cancel() is True
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)


async def test_w9_every_execution_has_its_own_timeout(
    processes: Processes, dsn: str, waits: Waits, database: Connection
) -> None:
    @hf.workflow(timeout=100)
    async def limited(generation: int) -> None:
        await hf.recv(str(generation))
        hf.continue_as(limited(generation + 1))

    rt = await processes.runtime(limited, settings=quick())
    handle = await rt.start(limited(0), id="one")
    async with DatabaseClock(dsn) as clock:
        for generation in range(3):
            await waits.on("message", "one", str(generation))
            remaining = await database.fetchval(
                "select extract(epoch from deadline - holdfast.now())::float from holdfast.workflows"
            )
            assert 99 < remaining <= 100
            await clock.advance(70)
            await handle.send(str(generation), None)
        await handle.cancel()
        with pytest.raises(hf.WorkflowCancelled):
            await handle.result(PATIENCE)
        await processes.leave(rt)


async def test_w5_a_replay_that_ends_too_early_does_not_go_on(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    @hf.workflow(name="changing")
    async def before() -> None:
        await do("a")
        await do("b")
        await hf.recv("go on")

    @hf.workflow(name="changing")
    async def after() -> None:
        await do("a")
        hf.continue_as(after())

    rt = await processes.runtime(before, settings=quick())
    await rt.start(before(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    await processes.runtime(after, settings=quick())
    await until(lambda: _parked(database), "parked")
    assert await database.fetchval("select generation from holdfast.workflows") == 0


async def _parked(database: Connection) -> bool:
    return bool(await database.fetchval("select parked is not null from holdfast.workflows"))


async def test_a_database_that_refuses_the_arguments_fails_the_execution(
    processes: Processes, database: Connection
) -> None:
    await database.execute(
        "alter table holdfast.workflows add constraint short check (length(input) < 20 or generation = 0)"
    )

    @hf.workflow
    async def grows(text: str) -> str:
        if not text:
            hf.continue_as(grows("x" * 100))
        return text

    rt = await processes.runtime(grows, settings=quick())
    with pytest.raises(hf.WorkflowFailed) as failed:
        await rt.run(grows(""))
    assert isinstance(failed.value.__cause__, hf.RecordRejected)


@pytest.mark.parametrize("lost", ["request", "reply"])
async def test_w2_a_commit_whose_reply_is_lost_does_not_go_on_twice(
    processes: Processes, dsn: str, database: Connection, lost: str
) -> None:
    faults = 0
    async with Proxy(dsn) as proxy:
        lose = proxy.lose_reply if lost == "reply" else proxy.lose_request

        def break_it(name: str) -> None:
            nonlocal faults
            if name == "continue.before_commit":
                lose("commit_batch")
                faults += 1

        uninstall = _observe.install(break_it)
        try:
            options = {"workflows": [relay], "listen_dsn": dsn, "settings": quick()}
            async with hf.Runtime(proxy.dsn, **options) as rt:  # type: ignore[arg-type]
                handle = await rt.start(relay(0, 10), id="one")
                for number in range(11):
                    await handle.send(inbox, number)
                assert await handle.result(PATIENCE) == 10
                assert await handle.read(out).collect() == [[number, number] for number in range(11)]
        finally:
            uninstall()
    assert faults == 10
    assert await database.fetchval("select generation from holdfast.workflows") == 10


@pytest.mark.parametrize("when", ["before", "after"])
async def test_w2_stopped_around_the_commit_it_goes_on_once(
    processes: Processes, points: Points, when: str
) -> None:
    rt = await processes.runtime(relay, settings=quick())
    killed = points.kill(rt, "continue.before_commit", when)
    handle = await rt.start(relay(0, 1), id="one")
    await handle.send(inbox, 1)
    await killed.wait()
    await processes.leave(rt)
    rt = await processes.runtime(relay, settings=quick())
    await rt.send("one", 2, inbox)
    assert await rt.handle(relay, "one").result(PATIENCE) == 1
    assert await rt.read_stream("one", out).collect() == [[0, 1], [1, 2]]


async def test_w8_a_parent_waits_for_the_last_execution_of_its_child(processes: Processes) -> None:
    @hf.workflow
    async def child(generation: int) -> int:
        if generation < 3:
            hf.continue_as(child(generation + 1))
        return generation

    @hf.workflow
    async def parent() -> list[int]:
        handle = await hf.start(child(0))
        return [await child(0), await handle.result()]

    rt = await processes.runtime(parent, child, settings=quick())
    assert await rt.run(parent()) == [3, 3]


async def test_w15_it_goes_on_in_another_process_if_the_code_is_there(
    processes: Processes, dsn: str, waits: Waits
) -> None:
    @hf.workflow
    async def there(number: int) -> int:
        return number

    @hf.workflow
    async def here() -> int:
        hf.continue_as(there(3))

    first = await processes.runtime(here, settings=quick())
    await processes.runtime(there, settings=quick())
    assert await first.run(here()) == 3
