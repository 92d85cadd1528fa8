"""A workflow that takes every process down is put aside; whoever only waits survives any number of deaths
[W13].
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits
from tests.runtime.cast import busy, jam, one_record_per_life, patient, poison
from tests.runtime.troupe import Troupe, troupe
from tests.runtime.witness import PATIENCE, Signals, fence, quick, state, until

LIVES = 20


@pytest.fixture
async def actors() -> AsyncIterator[Troupe]:
    async with troupe() as made:
        yield made


async def keep_alive(actors: Troupe, dsn: str, part: str) -> None:
    """Somebody plays this part all the time."""
    while True:
        actor = await actors.hire(dsn, part)
        await actor.gone.wait()


async def counted(database: Connection, workflow_id: str) -> tuple[int, int]:
    """How often it was claimed, and how many of these claims are known to have come to something."""
    row = await database.fetchrow("select claims, settled from holdfast.workflows where id = $1", workflow_id)
    assert row is not None
    return row[0], row[1]


async def is_settled(database: Connection, workflow_id: str) -> bool:
    claims, settled = await counted(database, workflow_id)
    return claims == settled


@pytest.mark.parametrize(
    "recorded", [False, True], ids=["without a record", "with a record in its first life"]
)
async def test_w13_poison_is_quarantined_and_the_others_on_its_executors_finish(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, recorded: bool
) -> None:
    client = await processes.client()
    waiting = [await client.start(patient("go on"), id=f"patient {number}") for number in range(20)]
    working = [await client.start(busy(10), id=f"busy {number}") for number in range(5)]
    fatal = await client.start(poison(recorded), id="poison")
    alive = [asyncio.create_task(keep_alive(actors, dsn, "poison")) for _ in range(2)]
    with pytest.raises(hf.WorkflowQuarantined):
        await fatal.result(60)
    assert await counted(database, "poison") == ((6, 1) if recorded else (5, 0))
    for handle in waiting:
        assert await state(database, handle.id) == "PENDING"
        await handle.send("go on", "done")
    assert [await handle.result(PATIENCE) for handle in waiting] == ["done"] * 20
    assert [await handle.result(PATIENCE) for handle in working] == [10] * 5
    for one in alive:
        one.cancel()


async def test_w13_an_endless_loop_in_the_replay_counts_too(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    """Its process does not die, but its heart stands still: others take over, and are blocked in turn."""
    client = await processes.client()
    fatal = await client.start(jam(60), id="jam")
    other = await client.start(patient("go on"), id="patient")
    for number in range(1, 4):
        await actors.hire(dsn, "jam", heartbeat=0.1, lease=0.6)
        await until(lambda number=number: _claimed(database, "jam", number), f"claimed {number} times")  # type: ignore[misc]
    await actors.hire(dsn, "jam", heartbeat=0.1, lease=0.6)
    with pytest.raises(hf.WorkflowQuarantined):
        await fatal.result(PATIENCE)
    await other.send("go on", "done")
    assert await other.result(PATIENCE) == "done"


async def _claimed(database: Connection, workflow_id: str, times: int) -> bool:
    return (await counted(database, workflow_id))[0] >= times


@pytest.mark.parametrize("end", ["graceful", "kill -9"])
async def test_w13_a_long_wait_survives_any_number_of_restarts(
    actors: Troupe, processes: Processes, database: Connection, dsn: str, end: str
) -> None:
    client = await processes.client()
    handle = await client.start(patient("go on"), id="one")
    for life in range(LIVES):
        actor = await actors.hire(dsn, "patient", heartbeat=0.05)
        await until(lambda life=life: _claimed(database, "one", life + 1), "claimed")  # type: ignore[misc]
        if end == "graceful":
            await actor.leave()
        else:
            await until(lambda: is_settled(database, "one"), "settled by a heartbeat")
            await actor.kill()
    await actors.hire(dsn, "patient")
    await handle.send("go on", "done")
    assert await handle.result(PATIENCE) == "done"
    assert (await counted(database, "one"))[0] == LIVES + 1


async def test_w13_whoever_gets_one_record_further_in_each_life_is_never_quarantined(
    actors: Troupe, processes: Processes, database: Connection, dsn: str
) -> None:
    client = await processes.client()
    handle = await client.start(one_record_per_life(), id="one")
    alive = asyncio.create_task(keep_alive(actors, dsn, "records"))
    assert await handle.result(60) == 12
    assert (await counted(database, "one"))[0] == 13
    alive.cancel()


# What is counted, in one process


@hf.workflow
async def rests() -> str:
    return str(await hf.recv("go on"))


@hf.workflow(max_recoveries=2)
async def fragile() -> str:
    await hf.set_event("said", "before")
    return str(await hf.recv("go on"))


async def quarantine(database: Connection, processes: Processes, waits: Waits) -> None:
    """A workflow of two lives that has died in both."""
    rt = await processes.runtime(fragile, settings=quick())
    await rt.start(fragile(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    waits.forget()
    await database.execute("update holdfast.workflows set claims = 2, settled = 0, claim_mark = 1 << 60")


async def test_w13_quarantined_is_seen_by_everybody_who_waits(
    processes: Processes,
    database: Connection,
    waits: Waits,
    signals: Signals,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await quarantine(database, processes, waits)
    client = await processes.client()
    handle = client.handle(fragile, "one")
    result = asyncio.create_task(handle.result(PATIENCE))
    event = asyncio.create_task(handle.get("never", PATIENCE))
    reader = asyncio.create_task(handle.read("never").collect())
    for kind in ("end", "stream", "event"):
        await waits.on(kind, "one", "" if kind == "end" else "never")
    await processes.runtime(fragile, settings=quick())
    with pytest.raises(hf.WorkflowQuarantined):
        await result
    with pytest.raises(hf.WorkflowFinished):
        await event
    assert await reader == []
    assert await handle.get("said") == "before"
    found = await handle.status()
    assert found.status is hf.Status.QUARANTINED
    assert found.finished_at is not None
    assert found.attempts == 2
    await handle.send("go on", "accepted")
    assert await database.fetchval("select executor_id from holdfast.workflows") is None
    await signals.heard("workflow.quarantined", workflow_id="one")
    assert "'one' is QUARANTINED: it was claimed 2 times" in caplog.text
    assert await handle.cancel() is False


async def test_w13_w10_what_was_to_end_is_cancelled_instead(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    await quarantine(database, processes, waits)
    client = await processes.client()
    assert await client.cancel("one") is True
    await processes.runtime(fragile, settings=quick())
    with pytest.raises(hf.WorkflowCancelled):
        await client.handle("one").result(PATIENCE)
    assert (await client.status("one")).cancelling is False


async def test_w13_a_parent_sees_that_its_child_is_quarantined(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def asks() -> str:
        try:
            return str(await fragile())
        except hf.WorkflowQuarantined as error:
            return f"{error.workflow_id} is quarantined"

    both = await processes.runtime(asks, fragile, settings=quick())
    handle = await both.start(asks(), id="one")
    await waits.on("message", "one/1", "go on")
    await processes.leave(both)
    await database.execute(
        "update holdfast.workflows set claims = 2, settled = 0, claim_mark = 1 << 60 where id = 'one/1'"
    )
    rt = await processes.runtime(asks, fragile, settings=quick())
    assert await rt.handle(asks, handle.id).result(PATIENCE) == "one/1 is quarantined"


async def test_w13_a_lease_that_was_lost_counts_and_a_heartbeat_at_rest_sets_it_back(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    rt = await processes.runtime(rests, settings=quick())
    await rt.start(rests(), id="one")
    for life in range(1, 4):
        await until(lambda life=life: _is(database, life, life), f"life {life} settled")  # type: ignore[misc]
        await fence(database, rt)
    await until(lambda: _is(database, 4, 4), "the last life settled")


async def _is(database: Connection, claims: int, settled: int) -> bool:
    return await counted(database, "one") == (claims, settled)


async def test_n1_w13_what_records_is_not_told_of_and_what_is_known_is_told_once(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    rt = await processes.runtime(fragile, rests, settings=quick(heartbeat=5))
    await rt.start(fragile(), id="records")
    await rt.start(rests(), id="waits")
    await waits.on("message", "records", "go on")
    await waits.on("message", "waits", "go on")
    rt.executor.beaten()
    await signals.heard("claims.settled", count=1)
    assert await counted(database, "records") == (1, 0)
    assert await counted(database, "waits") == (1, 1)
    for _ in range(3):
        rt.executor.beaten()
    await rt.status("waits")
    assert signals.times("claims.settled") == 1


async def test_w13_a_replay_that_goes_on_is_not_at_rest(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    """Between two recorded calls every task waits, but for the turnstile."""

    @hf.workflow
    async def long() -> None:
        await asyncio.gather(*(hf.set_event(str(number), number) for number in range(200)))
        await hf.recv("go on")

    rt = await processes.runtime(long, settings=quick())
    await rt.start(long(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(long, settings=quick(heartbeat=5))
    seen: list[bool] = []

    def look() -> None:
        run = rt.executor.runs.get("one")
        if run is not None:
            rt.executor.beaten()
            seen.append(run.settled)
            if run.turns.replaying:
                assert not run.settled
        if not waits.times("message", "one", "go on"):
            asyncio.get_running_loop().call_soon(look)

    look()
    await waits.on("message", "one", "go on")
    assert len(seen) > 100
    rt.executor.beaten()
    await signals.heard("claims.settled", count=1)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "5", None])
def test_w13_max_recoveries_must_make_sense(wrong: object) -> None:
    with pytest.raises(hf.ConfigurationError, match="max_recoveries"):
        hf.workflow(max_recoveries=wrong)  # type: ignore[call-overload]
