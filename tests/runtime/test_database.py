"""A database that fails under running workflows: they see delay, and nothing else [W2, M1]."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

import holdfast as hf
from holdfast._engine.writer import LANES
from holdfast._store.connection import Connection
from holdfast.embedded import Embedded
from holdfast.errors import RecordRejected
from holdfast.testing.faults import Proxy
from tests.processes import Points, Processes, Waits, connect
from tests.runtime.witness import PATIENCE, executor_of, held, journal, quick, state, until


@hf.step
async def double(number: int) -> int:
    return 2 * number


@hf.workflow
async def talk(rounds: int) -> int:
    """Sends to itself, receives, writes, publishes."""
    me = hf.current().workflow_id
    total = 0
    for number in range(rounds):
        value = await double(number)
        await hf.send(me, value, "numbers")
        await hf.write_stream("numbers", value)
        await hf.set_event("number", value)
        total += int(await hf.recv("numbers", timeout=60))
    return total


@hf.workflow
async def receive(messages: int) -> list[int]:
    return [int(await hf.recv("inbox")) for _ in range(messages)]


ROUNDS = 8
TOTAL = ROUNDS * (ROUNDS - 1)


async def check(database: Connection, rt: hf.Runtime, workflow_id: str) -> None:
    """A `talk` that has ended left an exact history."""
    assert await rt.handle(talk, workflow_id).result(PATIENCE) == TOTAL
    values = [2 * number for number in range(ROUNDS)]
    assert await rt.read_stream(workflow_id, "numbers").collect() == values
    events = await rt.get_events(workflow_id, history=True)
    assert events == {"number": [(number + 1, value) for number, value in enumerate(values)]}
    steps = await journal(database, workflow_id)
    assert [step_id for step_id, _, _ in steps] == [str(number + 1) for number in range(5 * ROUNDS)]
    rows = await database.fetch(
        "select message, consumed_by from holdfast.message_list where workflow_id = $1 order by id",
        workflow_id,
    )
    consumed = [(str(value), str(5 * number + 5)) for number, value in enumerate(values)]
    assert [tuple(row) for row in rows] == consumed


async def test_w2_m1_every_backend_terminated_again_and_again_under_load(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(talk, receive, settings=quick())
    client = await processes.client()
    inbox = await rt.start(receive(60), id="inbox")
    handles = [await rt.start(talk(ROUNDS), id=str(number)) for number in range(20)]

    async def send() -> None:
        for number in range(60):
            await client.send("inbox", number, "inbox")

    sending = asyncio.create_task(send())
    for _ in range(6):
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name like 'holdfast%'"
        )
        done = rt.statistics().writer.batches
        await until(lambda done=done: _batches(rt, done + 2), "another batch")  # type: ignore[misc]
    await sending
    assert await inbox.result(PATIENCE) == list(range(60)), "in order, and each once"
    for handle in handles:
        await check(database, rt, handle.id)


async def _batches(rt: hf.Runtime, number: int) -> bool:
    return rt.statistics().writer.batches >= number or not rt.executor.runs


class Server:
    """A PostgreSQL of the test's own, which may be shut down at once and started again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._embedded = Embedded(home, durable=False)
        self.dsn = self._embedded.acquire()

    def restart(self) -> None:
        """What `pg_ctl restart -m immediate` does."""
        base = (self._home / "server").readlink() if (self._home / "server").is_symlink() else self._home
        pid = int((base / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGQUIT)
        while (base / "data" / "postmaster.pid").exists():
            time.sleep(0.005)
        self._embedded.acquire()

    def stop(self) -> None:
        while self._embedded._uses:
            self._embedded.release()


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="hf-")).resolve()
    folder.chmod(0o755)
    server = Server(folder / "home")
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def test_w2_m1_postgresql_restarts_at_once_under_running_workflows(server: Server) -> None:
    async with (
        hf.Runtime(server.dsn, workflows=[talk, receive], settings=quick()) as rt,
        hf.Client(server.dsn) as client,
    ):
        former = executor_of(rt)
        inbox = await rt.start(receive(40), id="inbox")
        handles = [await rt.start(talk(ROUNDS), id=str(number)) for number in range(10)]
        for number in range(20):
            await client.send("inbox", number, "inbox")
        # Under way: calls made while nobody answers go on.
        restarting = asyncio.create_task(asyncio.to_thread(server.restart))
        for number in range(20, 40):
            await client.send("inbox", number, "inbox")
        await restarting
        assert await inbox.result(PATIENCE) == list(range(40))
        database = await connect(server.dsn)
        for handle in handles:
            await check(database, rt, handle.id)
        assert executor_of(rt) == former, "a restart is no death"
        await database.close()


async def test_database_unavailable_comes_only_after_patience_and_never_inside(
    processes: Processes, database: Connection, dsn: str, waits: Waits
) -> None:
    caught: list[BaseException] = []

    @hf.workflow
    async def patient() -> list[str]:
        try:
            await hf.recv("go on")
            await hf.set_event("said", "something")
        except Exception as error:
            caught.append(error)
        return [str(await hf.recv("go on"))]

    async with Proxy(dsn) as proxy:
        settings = quick(database_patience=2.0)  # enough to begin with
        rt = await processes.runtime(patient, dsn=proxy.dsn, settings=settings)
        handle = await rt.start(patient(), id="one")
        await waits.on("message", "one", "go on")
        proxy.refuse()
        proxy.reset()
        calls = (rt.send("one", "lost", "other"), rt.status("one"), rt.start(patient(), id="two"))
        assert min(await asyncio.gather(*(given_up(call) for call in calls))) >= 2.0
        proxy.heal()
        await handle.send("go on", "first")
        await handle.send("go on", "second")
        assert await handle.result(PATIENCE) == ["second"]
        assert caught == []
        await processes.leave(rt)


async def given_up(call: Awaitable[object]) -> float:
    """After how many seconds a call says that there is no database."""
    begun = time.monotonic()
    with pytest.raises(hf.DatabaseUnavailable):
        await call
    return time.monotonic() - begun


async def test_an_outage_shorter_than_patience_is_only_delay(
    processes: Processes, dsn: str, waits: Waits
) -> None:
    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(receive, dsn=proxy.dsn, settings=quick())
        handle = await rt.start(receive(3), id="one")
        await waits.on("message", "one", "inbox")
        proxy.refuse()
        proxy.reset()
        sending = [asyncio.create_task(rt.send("one", number, "inbox")) for number in range(3)]
        asking = asyncio.create_task(rt.status("one"))
        done, _ = await asyncio.wait([*sending, asking], timeout=0.3)
        assert not done
        proxy.heal()
        await asyncio.gather(*sending)
        assert (await asking).id == "one"
        assert await handle.result(PATIENCE) == [0, 1, 2]
        await processes.leave(rt)


async def test_back_pressure_holds_callers_back_and_loses_nothing(
    processes: Processes, database: Connection, dsn: str
) -> None:
    backlog = 20
    client = await processes.client(settings=quick(backlog=backlog))
    await client.start(receive(200), id="one")
    async with held(dsn, "messages"):
        sending = [asyncio.create_task(client.send("one", number, "inbox")) for number in range(200)]
        await until(lambda: _backlog(client, 1), "a backlog")
        for _ in range(20):
            await asyncio.sleep(0)
        assert client.statistics().writer.backlog <= backlog / LANES
    await asyncio.gather(*sending)
    assert client.statistics().writer.backlog == 0
    rt = await processes.runtime(receive, settings=quick())
    assert sorted(await rt.handle(receive, "one").result(PATIENCE)) == list(range(200))


async def _backlog(client: hf.Client, number: int) -> bool:
    return client.statistics().writer.backlog >= number


async def test_one_bad_record_fails_alone(
    processes: Processes, database: Connection, dsn: str, points: Points
) -> None:
    await database.execute(
        "alter table holdfast.messages add constraint not_7 check (payload <> convert_to('7', 'UTF8'))"
    )
    client = await processes.client()
    await client.start(receive(30), id="one")
    async with held(dsn, "messages"):
        first = await _send_into_the_void(client, points, 100)
        sending = [asyncio.create_task(client.send("one", number, "inbox")) for number in range(30)]
        await until(lambda: _backlog(client, 30), "all gathered")
    results = await asyncio.gather(first, *sending, return_exceptions=True)
    refused = [number for number, result in enumerate(results) if result is not None]
    assert refused == [8], "the message 7"
    assert isinstance(results[8], RecordRejected)
    assert "not_7" in str(results[8])
    assert "100" not in str(results[8])
    rt = await processes.runtime(receive, settings=quick())
    wanted = [100, *(number for number in range(30) if number != 7)]
    assert await rt.handle(receive, "one").result(PATIENCE) == wanted


async def _send_into_the_void(client: hf.Client, points: Points, number: int) -> asyncio.Task[None]:
    """A send that is on its way, and will not arrive while the table is held."""
    batches = points.passed["writer.before_commit"]
    sending = asyncio.create_task(client.send("one", number, "inbox"))

    async def begun() -> bool:
        return points.passed["writer.before_commit"] > batches

    await until(begun, "on its way")
    return sending


async def test_w6_a_record_that_the_database_refuses_is_an_outcome_of_its_call(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    await database.execute(
        "alter table holdfast.steps add constraint no_secrets "
        "check (kind <> 'step' or output <> convert_to('\"secret\"', 'UTF8'))"
    )

    @hf.step
    async def tell(what: str) -> str:
        return what

    @hf.workflow
    async def work() -> list[str]:
        said = []
        for what in ("open", "secret", "open again"):
            try:
                said.append(await tell(what))
            except hf.HoldfastError as error:
                said.append(type(error).__name__)
        await hf.recv("go on")
        return said

    rt = await processes.runtime(work, settings=quick())
    await rt.start(work(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(work, settings=quick())
    await rt.send("one", None, "go on")
    said = await rt.handle(work, "one").result(PATIENCE)
    assert [said[0], said[2]] == ["open", "open again"]
    assert said[1] != "secret"


async def test_a_cancelled_caller_outside_withdraws_what_is_queued_and_does_not_wait_for_what_is_not(
    processes: Processes, database: Connection, dsn: str, points: Points
) -> None:
    client = await processes.client()
    await client.start(receive(1), id="one")
    async with held(dsn, "messages"):
        first = await _send_into_the_void(client, points, 1)
        second = asyncio.create_task(client.send("one", 2, "inbox"))
        await until(lambda: _backlog(client, 1), "one queued")
        first.cancel()
        second.cancel()
        for cancelled in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await cancelled
    await client.send("one", 3, "inbox")
    rows = await database.fetch("select message from holdfast.message_list order by id")
    assert [row["message"] for row in rows] == ["1", "3"]


async def test_w7_an_outcome_that_cannot_be_recorded_for_long_is_found_again(
    processes: Processes, database: Connection, dsn: str
) -> None:
    go = asyncio.Event()
    lives: list[int] = []

    @hf.workflow
    async def work() -> str:
        lives.append(1)
        await go.wait()
        return "done"

    async with Proxy(dsn) as proxy:
        rt = await processes.runtime(work, dsn=proxy.dsn, settings=quick(database_patience=2.0))
        await rt.start(work(), id="one")
        proxy.refuse()
        proxy.reset()
        go.set()
        await until(lambda: _none(rt.executor.runs), "given up")
        assert await state(database, "one") == "PENDING"
        proxy.heal()
        assert await rt.handle(work, "one").result(PATIENCE) == "done"
        assert len(lives) == 2
        await processes.leave(rt)


async def _none(things: object) -> bool:
    return not things
