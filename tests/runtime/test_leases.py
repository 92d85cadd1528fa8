"""Ownership: the dead are succeeded, the living are left alone, zombies write nothing [W13, W14]."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Proxy
from tests.processes import Points, Processes, Waits, terminate
from tests.runtime.lone import halfway
from tests.runtime.witness import (
    PATIENCE,
    Signals,
    executor_of,
    fence,
    held,
    journal,
    quick,
    snapshot,
    state,
    until,
)

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


@hf.step
async def do(label: str) -> str:
    ran.append(label)
    return label


@hf.workflow
async def work() -> str:
    said = await do("a")
    await hf.recv("go on")
    return said + await do("b")


async def dead_executor(database: Connection, *, silent: float) -> int:
    """An executor whose session is gone, `silent` seconds after its last heartbeat."""
    number: int = await database.fetchval(
        "insert into holdfast.executors (name, started_at, heartbeat_at) "
        "values ('dead', holdfast.now(), holdfast.now() - make_interval(secs => $1)) returning id",
        silent,
    )
    return number


async def come_half_way(processes: Processes, waits: Waits) -> None:
    """A workflow waits for "go on", and nobody runs it."""
    rt = await processes.runtime(work, settings=quick())
    await rt.start(work(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    waits.forget()


@pytest.mark.parametrize("silent", [3600, 0])
async def test_w13_a_new_runtime_adopts_the_work_of_the_dead(
    processes: Processes, database: Connection, waits: Waits, silent: float
) -> None:
    await come_half_way(processes, waits)
    executor = await dead_executor(database, silent=silent)
    await database.execute("update holdfast.workflows set executor_id = $1", executor)
    rt = await processes.runtime(work, settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(work, "one").result(PATIENCE) == "ab"
    assert ran == ["a", "b"]
    row = await database.fetchrow("select epoch, claims from holdfast.workflows")
    assert tuple(row or ()) == (2, 2)
    assert await database.fetchval("select fenced_at from holdfast.executors where id = $1", executor)


async def test_w13_the_work_of_the_dead_is_left_to_who_knows_its_name(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    @hf.workflow
    async def unrelated() -> None:
        pass

    await come_half_way(processes, waits)
    executor = await dead_executor(database, silent=3600)
    await database.execute("update holdfast.workflows set executor_id = $1", executor)
    stranger = await processes.runtime(unrelated, settings=quick())
    await stranger.run(unrelated())
    await until(lambda: _fenced(database, executor), "the dead fenced")
    assert await state(database, "one") == "PENDING"
    rt = await processes.runtime(work, settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(work, "one").result(PATIENCE) == "ab"


async def _fenced(database: Connection, executor: int) -> bool:
    return bool(
        await database.fetchval(
            "select fenced_at is not null from holdfast.executors where id = $1", executor
        )
    )


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_w13_a_living_runtime_succeeds_a_process_that_dies(
    processes: Processes, database: Connection, dsn: str, fault: signal.Signals
) -> None:
    program = [sys.executable, "-m", "tests.runtime.lone", dsn, "one"]
    child = await asyncio.create_subprocess_exec(*program, cwd=Path(__file__).parents[2])
    try:
        await until(lambda: _waits_for_go_on(database), "come half way")
        rt = await processes.runtime(halfway, settings=quick(lease=2))
        await _beats(rt, 4)
        child.send_signal(fault)
        await rt.send("one", None, "go on")
        assert await rt.handle(halfway, "one").result(PATIENCE) == "ab"
        assert [item async for item in rt.read_stream("one", "marks")] == ["a", "b"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _waits_for_go_on(database: Connection) -> bool:
    return len(await journal(database, "one")) == 1


async def test_w13_a_second_runtime_never_steals_from_a_living_one(
    processes: Processes, database: Connection, dsn: str, waits: Waits, signals: Signals
) -> None:
    calm = quick(heartbeat=0.5)  # so long the first has to be back
    first = await processes.runtime(work, settings=calm)
    await first.start(work(), id="one")
    await waits.on("message", "one", "go on")
    mine = executor_of(first)
    for _ in range(3):
        # Its session is cut while another one looks who is dead.
        await terminate(database, "listener")
        second = await processes.runtime(work, settings=calm)
        await _beats(second, 3)
        await processes.leave(second)
    assert await database.fetchval("select executor_id from holdfast.workflows") == mine
    assert await database.fetchval("select epoch from holdfast.workflows") == 1
    assert executor_of(first) == mine
    assert signals.times("lease.lost") == 0
    await first.send("one", None, "go on")
    assert await first.handle(work, "one").result(PATIENCE) == "ab"
    assert ran == ["a", "b"]


async def test_w13_a_faster_heart_gives_a_slower_one_the_time_of_its_own_beat(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    first = await processes.runtime(work, settings=quick(heartbeat=2.5, lease=30))
    await first.start(work(), id="one")
    await waits.on("message", "one", "go on")
    mine = executor_of(first)
    async with processes.unheard(database):  # its lock has fallen
        second = await processes.runtime(work, dsn=dsn, settings=quick())
        await _beats(second, 6)
        await processes.leave(second)
        robbed = "select fenced_at < heartbeat_at + interval '2.5 s' from holdfast.executors where id = $1"
        assert not await database.fetchval(robbed, mine)
    await first.send("one", None, "go on")
    assert await first.handle(work, "one").result(PATIENCE) == "ab"


async def _beats(rt: hf.Runtime, times: int) -> None:
    """Returns after so many heartbeats."""
    for _ in range(times):
        heard = rt.statistics().listener.last_heard
        async with asyncio.timeout(PATIENCE):
            while rt.statistics().listener.last_heard == heard:
                await asyncio.sleep(0.005)


async def test_w13_whoever_holds_its_lock_is_left_alone_until_its_heart_is_silent(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    """Another program's executor, as far as the tables tell: its lock is held, its heart beats."""
    await come_half_way(processes, waits)
    holder: Connection = await asyncpg.connect(dsn)
    executor = await holder.fetchval("select holdfast.register_executor('living', null)")
    await database.execute("update holdfast.workflows set executor_id = $1", executor)
    rt = await processes.runtime(work, settings=quick())
    await _beats(rt, 6)
    assert await database.fetchval("select executor_id from holdfast.workflows") == executor
    assert await database.fetchval("select epoch from holdfast.workflows") == 1
    await processes.leave(rt)
    # Stopped, not dead: its session lives on, and its lock with it.
    await database.execute("update holdfast.executors set heartbeat_at = heartbeat_at - interval '1 hour'")
    rt = await processes.runtime(work, settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(work, "one").result(PATIENCE) == "ab"
    await holder.close()


async def test_w14_nothing_of_a_zombie_lands(
    processes: Processes, database: Connection, signals: Signals
) -> None:
    """Taken for dead while a step runs, it does not know, and goes on talking."""
    gates: list[asyncio.Event] = []
    spoken: list[int] = []

    @hf.step
    async def slow() -> int:
        life = len(gates) + 1
        await hf.write_stream("from a step", life)
        gates.append(asyncio.Event())
        await gates[-1].wait()
        try:
            await hf.write_stream("from a step", life + 10)
            await hf.send("other", life, "from a step")
            await hf.set_event("from a step", life)
        finally:
            spoken.append(life)
        return life

    @hf.workflow
    async def other() -> None:
        await hf.recv("never")

    @hf.workflow
    async def talk() -> int:
        life = await slow()
        await hf.set_event("life", life)
        await hf.send("other", life, "life")
        await hf.write_stream("lives", life)
        await hf.start(other(), id=f"started in life {life}")
        return life

    zombie = await processes.runtime(talk, other, settings=quick(heartbeat=5))
    await zombie.start(other(), id="other")
    await zombie.start(talk(), id="one")
    await until(lambda: _count(gates, 1), "the step begun")
    await fence(database, zombie)
    successor = await processes.runtime(talk, other, settings=quick())
    await until(lambda: _count(gates, 2), "the step begun again")
    before = await snapshot(database)
    gates[0].set()
    await until(lambda: _count(spoken, 1), "the zombie told")
    assert await snapshot(database) == before
    gates[1].set()
    assert await successor.handle(talk, "one").result(PATIENCE) == 2
    after = await snapshot(database)
    assert {row[3] for row in after["events"]} == {"2"}
    assert [row[3] for row in after["values"] if row[1] == "from a step"] == ["1", "2", "12"]
    assert [row[3] for row in after["values"] if row[1] == "lives"] == ["2"]
    assert {row[2] for row in after["messages"]} == {"2"}
    assert [row[0] for row in after["workflows"] if "started" in row[0]] == ["started in life 2"]


async def _count(things: list[int] | list[asyncio.Event], number: int) -> bool:
    return len(things) >= number


async def test_w14_the_runtime_goes_on_as_a_new_executor(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    rt = await processes.runtime(work, settings=quick())
    handle = await rt.start(work(), id="one")
    await waits.on("message", "one", "go on")
    waits.forget()
    former = await fence(database, rt)
    await signals.heard("lease.lost", executor=former)
    await signals.heard("lease.registered", 2)
    await waits.on("message", "one", "go on")
    assert executor_of(rt) != former
    await handle.send("go on", None)
    assert await handle.result(PATIENCE) == "ab"
    assert ran == ["a", "b"]
    fresh = await rt.start(work(), id="two")
    await fresh.send("go on", None)
    assert await fresh.result(PATIENCE) == "ab"
    assert await database.fetchval("select epoch from holdfast.workflows where id = 'two'") == 1


async def test_w14_an_executor_that_cannot_renew_its_lease_stops_by_itself(
    processes: Processes, database: Connection, dsn: str, signals: Signals
) -> None:
    """Only its heartbeat is cut off; it could go on writing, and does not."""
    begun: list[asyncio.Event] = []
    cancelled: list[int] = []

    @hf.step
    async def hang() -> str:
        begun.append(asyncio.Event())
        life = len(begun)
        try:
            await begun[-1].wait()
        except asyncio.CancelledError:
            cancelled.append(life)
            raise
        return f"in life {life}"

    @hf.workflow
    async def patient() -> str:
        return await hang()

    async with Proxy(dsn) as proxy:
        settings = quick(lease=3.0, heartbeat=0.1)
        options = {"workflows": [patient], "listen_dsn": proxy.dsn, "settings": settings}
        async with hf.Runtime(dsn, **options) as rt:  # type: ignore[arg-type]
            handle = await rt.start(patient(), id="one")
            await until(lambda: _count(begun, 1), "the step begun")
            former = executor_of(rt)
            proxy.refuse()
            proxy.reset()
            await signals.heard("lease.lost", executor=former)
            await until(lambda: _count(cancelled, 1), "the step cancelled")
            assert await journal(database, "one") == []
            proxy.heal()
            await until(lambda: _count(begun, 2), "the step begun again")
            assert executor_of(rt) != former
            begun[1].set()
            assert await handle.result(PATIENCE) == "in life 2"


async def test_w14_a_batch_that_hangs_does_not_keep_the_fence_up(
    processes: Processes, database: Connection, dsn: str, points: Points
) -> None:
    """The dead one's last batch waits for a lock; whoever succeeds it ends its session."""
    zombie = await processes.runtime(work, settings=quick(heartbeat=5))
    async with held(dsn, "steps"):
        batches = points.passed["writer.before_commit"]
        await zombie.start(work(), id="one")
        await until(lambda: _passed(points, batches + 2), "the step's record on its way")
        await database.execute(
            "update holdfast.executors set heartbeat_at = heartbeat_at - interval '1 hour'"
        )
        successor = await processes.runtime(work, settings=quick())
        await until(lambda: _fenced(database, 1), "fenced")
    await successor.send("one", None, "go on")
    assert await successor.handle(work, "one").result(PATIENCE) == "ab"


async def _passed(points: Points, number: int) -> bool:
    return points.passed["writer.before_commit"] >= number


async def test_w14_what_a_zombie_starts_runs_under_whoever_lives(
    processes: Processes, database: Connection
) -> None:
    zombie = await processes.runtime(work, settings=quick(heartbeat=5))
    await fence(database, zombie)
    handle = await zombie.start(work(), id="one")
    assert await state(database, "one") == "ENQUEUED"
    await handle.send("go on", None)
    successor = await processes.runtime(work, settings=quick())
    assert await successor.handle(work, "one").result(PATIENCE) == "ab"
    assert await handle.result(PATIENCE) == "ab"
    assert ran == ["a", "b"]


async def test_w14_fenced_again_and_again_everything_ends_once(
    processes: Processes, database: Connection
) -> None:
    @hf.workflow
    async def long() -> int:
        me = hf.current().workflow_id
        for number in range(10):
            await do("x")
            await hf.write_stream("n", number)
            await hf.send(me, number, "n")
            assert await hf.recv("n") == number
        return 10

    rt = await processes.runtime(long, settings=quick())
    handles = [await rt.start(long(), id=str(number)) for number in range(10)]
    ended = asyncio.gather(*(handle.result(PATIENCE) for handle in handles))
    for _ in range(4):
        await until(lambda: _registered(rt), "a new executor")
        await fence(database, rt)
    assert await ended == [10] * 10
    for handle in handles:
        assert await handle.read("n").collect() == list(range(10))
        steps = await journal(database, handle.id)
        assert sorted(int(step_id) for step_id, _, _ in steps) == list(range(1, 41))
    assert await database.fetchval("select count(*) from holdfast.messages") == 100
    assert await database.fetchval("select count(*) from holdfast.messages where consumed_by is null") == 0


async def _registered(rt: hf.Runtime) -> bool:
    return rt.executor.lease.executor is not None
