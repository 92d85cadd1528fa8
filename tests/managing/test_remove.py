"""Deleting and pruning: everything of a workflow goes, and nothing of the living."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

import holdfast as hf
from holdfast._primitives import managing
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import TABLES, Processes, Waits, connect
from tests.runtime.witness import PATIENCE, quick, until

log = hf.Stream[int]("log")
stage = hf.Event[str]("stage")


@hf.step
async def do() -> None: ...


@hf.workflow
async def child() -> str:
    await do()
    return "child"


@hf.workflow
async def busy() -> str:
    await do()
    await log.write(1, 2, 3)
    await log.close()
    await stage.set("begun")
    await child()
    return await hf.recv("go on", type=str)


@hf.workflow
async def quiet() -> str:
    return "quiet"


async def left(database: Connection) -> dict[str, set[str]]:
    """The workflows of which there are rows, by table; tables without any left out."""
    found = {}
    for table in TABLES:
        column = "id" if table == "workflows" else "workflow_id"
        rows = await database.fetch(f"select distinct {column} from holdfast.{table}")
        if rows:
            found[table] = {row[0] for row in rows}
    return found


async def ended(rt: hf.Client, *ids: str) -> None:
    for workflow_id in ids:
        handle = await rt.start(busy(), id=workflow_id)
        await handle.send("go on", "now")
        await handle.send("never", "unread")
        await handle.result(PATIENCE)


async def test_delete_removes_all_of_it_and_nothing_else(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(busy, child)
    await ended(rt, "one", "two")
    await rt.delete("one")
    assert await left(database) == {
        "workflows": {"two", "two/5"},
        "steps": {"two", "two/5"},
        "messages": {"two"},
        "events": {"two"},
        "stream_values": {"two"},
        "streams": {"two"},
    }
    for look in (rt.status, rt.steps, rt.messages, rt.streams, rt.get_events, rt.delete, rt.resume):
        with pytest.raises(hf.WorkflowNotFound):
            await look("one")
    # Its id is free again.
    handle = await rt.start(busy(), id="one")
    assert handle.id == "one"


@hf.workflow
async def asks_later() -> str:
    made = await hf.start(child())
    await made.result()
    await hf.recv("go on")
    return "asked " + str((await made.status()).status)


async def test_w12_while_a_fork_is_active_the_children_that_it_may_ask_for_stay(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(asks_later, child)
    handle = await rt.start(asks_later(), id="one")
    await waits.on("message", "one", "go on")
    fork = await handle.fork(from_step="2", id="fork")
    await waits.on("message", "fork", "go on")
    await handle.send("go on", "")
    await handle.result(PATIENCE)
    await rt.delete("one")
    assert (await rt.status("one/1")).parent is None
    await fork.send("go on", "")
    assert await fork.result(PATIENCE) == "asked SUCCESS"


runs = 0


@hf.workflow
async def counted() -> int:
    global runs
    runs += 1
    return runs


@hf.workflow
async def counting(depth: int) -> list[int]:
    if depth:
        return [await counted(), *await counting(depth - 1)]
    return []


async def test_w8_the_id_of_a_deleted_workflow_has_no_old_children(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(counting, counted)
    first = await rt.run(counting(3), id="again")
    await rt.delete("again")
    assert await left(database) == {}
    second = await rt.run(counting(3), id="again")
    assert not set(first) & set(second)


async def test_w8_children_of_any_depth_and_number_go_with_their_parent_in_batches(
    processes: Processes, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await processes.client()
    await database.execute(
        """
        insert into holdfast.workflows
            (id, name, status, start_token, input, created_at, finished_at, parent_id, parent_step)
        select 'deep' || repeat('/1', n), 'w', 3, gen_random_uuid(), '[]'::bytea, now(), now(),
            case when n > 0 then 'deep' || repeat('/1', n - 1) end, case when n > 0 then '1' end
        from generate_series(0, 254) n
        union all
        select 'deep/1/' || n, 'w', 3, gen_random_uuid(), '[]'::bytea, now(), now(), 'deep/1', n::text
        from generate_series(2, 1000) n
        """
    )
    monkeypatch.setattr(managing, "REMOVED_AT_ONCE", 300)
    await client.delete("deep")
    assert await left(database) == {}


@hf.workflow
async def leaving() -> str:
    await hf.start(busy())
    await hf.start(child(), id="a name of its own")
    return "left"


async def test_w8_what_stays_of_the_children_of_a_deleted_workflow_is_nobodys(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(leaving, busy, child)
    await rt.run(leaving(), id="one")
    await waits.on("message", "one/1", "go on")
    await rt.delete("one")
    assert (await left(database))["workflows"] == {"one/1", "one/1/5", "a name of its own"}
    assert not await rt.list(parent="one")
    assert (await rt.status("one/1")).status is hf.Status.PENDING
    # A new one does not take the child of the old one for its own.
    with pytest.raises(hf.WorkflowFailed) as failure:
        await rt.run(leaving(), id="one")
    assert isinstance(failure.value.__cause__, hf.WorkflowConflict)


async def test_w8_a_pruned_parent_leaves_no_child_that_a_new_one_could_take(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    rt = await processes.runtime(leaving, busy, child, settings=quick())
    async with DatabaseClock(dsn) as clock:
        await rt.run(leaving(), id="one")
        await waits.on("message", "one/1", "go on")
        await clock.advance(timedelta(days=2))
        young = rt.handle("one/1")
        await young.send("go on", "now")
        await young.result(PATIENCE)
        assert await rt.prune(timedelta(days=1)) == 3
        assert (await left(database))["workflows"] == {"one/1"}
        assert not await rt.list(parent="one")


async def test_delete_waits_for_who_holds_a_child(
    processes: Processes, database: Connection, dsn: str
) -> None:
    rt = await processes.runtime(busy, child)
    await ended(rt, "one")
    holder = await connect(dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from holdfast.workflows where id = 'one/5' for update")
    deleting = asyncio.create_task(rt.delete("one"))

    async def waiting() -> bool:
        return bool(
            await database.fetchval(
                "select count(*) > 0 from pg_stat_activity "
                "where wait_event_type = 'Lock' and datname = current_database()"
            )
        )

    await until(waiting, "the deletion waiting")
    await transaction.rollback()
    await holder.close()
    await deleting
    assert await left(database) == {}


async def test_delete_of_an_active_one_says_what_to_do(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(busy, child)
    client = await processes.client()
    await rt.start(busy(), id="pending")
    await waits.on("message", "pending", "go on")
    await client.start(hf.WorkflowRef[[], str]("elsewhere")(), id="enqueued")
    for workflow_id in ("pending", "enqueued"):
        with pytest.raises(hf.WorkflowConflict, match="cancel it"):
            await client.delete(workflow_id)
        assert (await client.status(workflow_id)).status.active


async def test_delete_of_a_large_one_goes_in_batches(
    processes: Processes, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = await processes.runtime(busy, child)
    await ended(rt, "one")
    await database.execute(
        'insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, '
        "created_at) select 'one', 'large', n, '1', 1, '1', now() from generate_series(0, 999) n"
    )
    monkeypatch.setattr(managing, "REMOVED_AT_ONCE", 100)
    # Nobody may take up or copy what is half removed.
    assert await database.fetchval("select holdfast.delete_workflow('one', 100, 'channel')") == "more"
    for act in (rt.resume("one"), rt.fork("one", from_step="1")):
        with pytest.raises(hf.WorkflowNotFound):
            await act
    await rt.delete("one")
    assert await left(database) == {}


async def test_delete_by_many_at_once(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(busy, child)
    client = await processes.client()
    await ended(rt, "one")
    done = await asyncio.gather(
        *(side.delete("one") for side in (rt, client) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["NoneType"] + ["WorkflowNotFound"] * 9


async def test_prune_removes_what_ended_long_ago(
    processes: Processes, database: Connection, dsn: str
) -> None:
    rt = await processes.runtime(busy, child, quiet, settings=quick())
    async with DatabaseClock(dsn) as clock:
        await ended(rt, "old", "older")
        await clock.advance(timedelta(days=31))
        await ended(rt, "new")
        assert await rt.prune(timedelta(days=32)) == 0
        assert await rt.prune(timedelta(days=30)) == 4
        assert (await left(database))["workflows"] == {"new", "new/5"}
        assert {name for ids in (await left(database)).values() for name in ids} == {"new", "new/5"}
        assert await rt.prune(0) == 2
        assert await left(database) == {}


async def test_prune_never_touches_the_living_nor_their_children(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    rt = await processes.runtime(busy, child, quiet, settings=quick())
    client = await processes.client()
    async with DatabaseClock(dsn) as clock:
        handle = await rt.start(busy(), id="alive")
        await waits.on("message", "alive", "go on")
        await client.start(hf.WorkflowRef[[], str]("elsewhere")(), id="enqueued")
        await ended(rt, "dead")
        await clock.advance(timedelta(days=1))
        assert await client.prune(3600) == 2
        assert (await left(database))["workflows"] == {"alive", "alive/5", "enqueued"}
        await handle.send("go on", "now")
        assert await handle.result(PATIENCE) == "now"
        assert await client.prune(3600) == 1  # its parent has just ended, and is young


async def test_prune_forgets_executors_that_are_long_gone_and_that_no_workflow_names(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    async def executors() -> list[int]:
        rows = await database.fetch("select id from holdfast.executors order by id")
        return [row["id"] for row in rows]

    async with DatabaseClock(dsn) as clock:
        for name in ("first", "second"):
            rt = await processes.runtime(quiet, settings=quick())
            await rt.run(quiet(), id=name)
            await processes.leave(rt)
            await clock.advance(timedelta(days=1))
        client = await processes.client()
        first, second = await executors()
        assert await client.prune(3 * 86400) == 0
        assert await executors() == [first, second]
        assert await client.prune(1.5 * 86400) == 1
        assert await executors() == [second]
        assert (await client.status("second")).executor is not None
        rt = await processes.runtime(quiet, settings=quick())
        assert await client.prune(0) == 1
        (living,) = await executors()
        assert await rt.run(quiet()) == "quiet"
        assert living == rt.executor.lease.executor


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 50, 10_000])
async def test_prune_in_batches_of_any_size(processes: Processes, database: Connection, batch: int) -> None:
    rt = await processes.runtime(busy, child, quiet)
    await ended(rt, "one", "two")
    for number in range(5):
        await rt.run(quiet(), id=f"q{number}")
    assert await rt.prune(0, batch=batch) == 9
    assert await left(database) == {}


async def test_prune_skips_what_somebody_holds_and_two_share_the_work(
    processes: Processes, database: Connection, dsn: str
) -> None:
    rt = await processes.runtime(quiet)
    client = await processes.client()
    for number in range(30):
        await rt.run(quiet(), id=f"q{number}")
    holder = await connect(dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from holdfast.workflows where id = 'q7' for update")
    counts = await asyncio.gather(rt.prune(0, batch=4), client.prune(0, batch=4))
    assert sum(counts) <= 29
    assert await rt.prune(0) + sum(counts) == 29
    await transaction.rollback()
    await holder.close()
    assert await rt.prune(0) == 1


async def test_prune_that_is_cancelled_stops_between_batches_and_the_next_goes_on(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(quiet)
    for number in range(50):
        await rt.run(quiet(), id=f"q{number}")
    pruning = asyncio.create_task(rt.prune(0, batch=1))

    async def some_are_gone() -> bool:
        return bool(await database.fetchval("select count(*) < 48 from holdfast.workflows"))

    await until(some_are_gone, "some of them removed")
    pruning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pruning
    count = await database.fetchval("select count(*) from holdfast.workflows")
    assert await rt.prune(0) in (count, count - 1)  # one more may have been on its way
    assert await left(database) == {}


async def test_prune_ends_what_a_deletion_has_left_half_done(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(busy, child)
    await ended(rt, "one")
    assert await database.fetchval("select holdfast.delete_workflow('one', 3, 'channel')") == "more"
    assert await rt.prune(3600) == 1
    assert await left(database) == {}


@pytest.mark.parametrize(("age", "batch"), [(-1, 1), (1, 0), (float("nan"), 1)])
async def test_prune_refuses_nonsense(processes: Processes, age: float, batch: int) -> None:
    client = await processes.client()
    with pytest.raises(ValueError, match=r"duration|batch"):
        await client.prune(age, batch=batch)
