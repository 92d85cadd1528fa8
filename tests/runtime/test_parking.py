"""Code that does not match a journal passes the workflow on; it goes on wherever there is code that does, and
nothing is lost on the way [W5].
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, settled
from tests.runtime.cast import guarded, original, renamed
from tests.runtime.troupe import Troupe, troupe
from tests.runtime.witness import PATIENCE, Signals, executor_of, fence, journal, quick, state, until


@pytest.fixture
async def actors() -> AsyncIterator[Troupe]:
    async with troupe() as made:
        yield made


async def come_half_way(processes: Processes, waits: Waits, code: hf.Workflow[[], str]) -> None:
    """It waits for "go on", and nobody runs it."""
    rt = await processes.runtime(code, settings=quick())
    await rt.start(code(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    waits.forget()


async def parked_by(database: Connection) -> list[int]:
    """Executors that have passed it on, if nobody has it now."""
    row = await database.fetchrow("select executor_id, parked from holdfast.workflows where id = 'one'")
    assert row is not None
    return list(row["parked"] or ()) if row["executor_id"] is None else []


async def _parked(database: Connection, times: int) -> bool:
    return len(await parked_by(database)) == times


@pytest.mark.parametrize(
    ("wrote", "lives"),
    [
        ("original", "renamed"),
        ("original", "moved"),
        ("original", "removed"),
        ("renamed", "original"),
    ],
)
async def test_w5_other_code_passes_it_on_once_each_and_it_goes_on_where_code_matches(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, wrote: str, lives: str
) -> None:
    client = await processes.client()
    writer = await actors.hire(dsn, wrote)
    handle = await client.start(hf.WorkflowRef[[], str]("changing")(), id="one")
    await until(lambda: _waiting(database), "come half way")
    before = await journal(database, "one")
    others = [await actors.hire(dsn, lives) for _ in range(2)]
    await writer.kill()
    await until(lambda: _parked(database, 2), "passed on by both")
    epoch = await database.fetchval("select epoch from holdfast.workflows")
    assert await state(database, "one") == "PENDING"
    # The third of their kind passes it on once more; nobody takes it twice.
    await actors.hire(dsn, lives)
    await until(lambda: _parked(database, 3), "passed on by the third")
    assert await database.fetchval("select epoch from holdfast.workflows") == epoch + 1
    assert await journal(database, "one") == before
    await handle.send("go on", "!")
    await actors.hire(dsn, wrote)
    assert await handle.result(PATIENCE) in ("ab!", "aB!")
    assert {other.code for other in others} == {None}, "the others live on"
    row = await database.fetchrow("select claims, settled from holdfast.workflows")
    assert row is not None
    assert row["claims"] - row["settled"] <= 1, "being passed on does not count against it"


async def _waiting(database: Connection) -> bool:
    return len(await journal(database, "one")) == 2


async def test_w5_whoever_matches_and_lives_hears_of_it_whatever_becomes_of_its_owner(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    await come_half_way(processes, waits, original)
    wrong = await processes.runtime(renamed, settings=quick())
    await until(lambda: _parked(database, 1), "passed on")
    first = await processes.runtime(original, settings=quick())
    await waits.on("message", "one", "go on")
    waits.forget()
    second = await processes.runtime(original, settings=quick())
    await processes.leave(first)
    await waits.on("message", "one", "go on")
    waits.forget()
    third = await processes.runtime(original, settings=quick())
    await fence(database, second)
    await waits.on("message", "one", "go on")
    await third.send("one", "!", "go on")
    assert await third.handle(original, "one").result(PATIENCE) == "ab!"
    assert wrong.executor.runs == {}


async def test_w5_the_dead_are_not_remembered(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    await come_half_way(processes, waits, original)
    for _ in range(3):
        rt = await processes.runtime(renamed, settings=quick())
        number = executor_of(rt)
        await until(lambda number=number: _parked_by(database, number), "passed on by it alone")  # type: ignore[misc]
        await processes.leave(rt)


async def _parked_by(database: Connection, number: int) -> bool:
    return await parked_by(database) == [number]


async def test_w5_it_does_not_lie_in_the_way_of_others(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    """Hundreds that nobody can run here; what can be run is run."""
    rt = await processes.runtime(original, settings=quick())
    for number in range(600):
        await rt.start(original(), id=str(number))
    for number in range(600):
        await waits.on("message", str(number), "go on")
    await processes.leave(rt)
    rt = await processes.runtime(renamed, settings=quick())
    await signals.heard("workflow.parked", 600)
    client = await processes.client()
    handle = await client.start(hf.WorkflowRef[[], str]("changing")(), id="new")
    await handle.send("go on", "!")
    assert await handle.result(PATIENCE) == "aB!"
    assert signals.times("workflow.parked") == 600
    await settled(rt)


async def test_w5_w10_a_parked_workflow_is_cancelled_at_once_without_its_code(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    cleaned: list[str] = []

    @hf.workflow(name="changing")
    async def tidy() -> None:
        try:
            await hf.start(resting(), id="child")
            await hf.recv("go on")
        finally:
            cleaned.append("up")

    @hf.workflow
    async def resting() -> None:
        await hf.recv("never")

    rt = await processes.runtime(tidy, resting, settings=quick())
    await rt.start(tidy(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    cleaned.clear()
    rt = await processes.runtime(renamed, resting, settings=quick())
    await signals.heard("workflow.parked", workflow_id="one")
    client = await processes.client()
    assert await client.cancel("one") is True
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("one").result(PATIENCE)
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("child").result(PATIENCE)
    assert await client.cancel("one") is False
    assert cleaned == []
    await processes.runtime(tidy, settings=quick())
    assert await state(database, "one") == "CANCELLED"


async def test_w5_w10_what_was_to_end_ends_where_its_code_does_not_match(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    await come_half_way(processes, waits, original)
    client = await processes.client()
    await client.cancel("one")
    assert await state(database, "one") == "PENDING"
    await processes.runtime(renamed, settings=quick())
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("one").result(PATIENCE)


async def test_w5_w10_cancelled_while_it_is_being_parked(
    processes: Processes, database: Connection, waits: Waits, points: Points, signals: Signals
) -> None:
    await come_half_way(processes, waits, original)
    asking: list[asyncio.Task[bool]] = []
    client = await processes.client()
    points.at("park.before_commit", lambda: asking.append(asyncio.create_task(client.cancel("one"))))
    await processes.runtime(renamed, settings=quick())
    await until(lambda: _passed(points), "on its way")
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("one").result(PATIENCE)
    assert await asking[0] is True


async def _passed(points: Points) -> bool:
    return points.passed["park.before_commit"] == 1


async def test_w5_old_code_passes_on_what_new_code_has_patched(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    """A rolling deploy: the new process dies, the old one still lives, another new one comes."""
    client = await processes.client()
    new = await actors.hire(dsn, "guarded")
    handle = await client.start(guarded(), id="one")
    await until(lambda: _waiting_new(database), "come half way the new way")
    old = await actors.hire(dsn, "original")
    await new.kill()
    await until(lambda: _parked(database, 1), "passed on by the old one")
    await actors.hire(dsn, "guarded")
    await handle.send("go on", "!")
    assert await handle.result(PATIENCE) == "aB!"
    assert old.code is None


async def _waiting_new(database: Connection) -> bool:
    return len(await journal(database, "one")) == 3
