"""The listener hears, proves it, and is back before anybody misses it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from holdfast import _clock, _keys
from holdfast._engine.listener import Listener
from holdfast._engine.waiters import Waiters
from holdfast._store.connection import Connection, Retryable
from holdfast.errors import ConfigurationError
from holdfast.testing.faults import Direction, Proxy

from .conftest import FakeClock, Signals

CHANNEL = _keys.channel("holdfast")
ENGINE = "0123456789abcdef"
KEY = _keys.wake_key("message", "order-1", "payment")
OTHER = _keys.wake_key("end", "order-1")
MINE = "from pg_stat_activity where application_name = 'holdfast listener' and datname = current_database()"


class Rig:
    """A listener with its waiters, a heartbeat like the engine's, and a note of what it was told."""

    def __init__(self, dsn: str, heartbeat: float) -> None:
        self.waiters = Waiters()
        self.started = asyncio.Event()
        self.broken: Exception | None = None
        self.connections: list[Connection] = []
        self.queries: list[str] = []
        self.beats = 0
        self.lost = 0
        self.listener = Listener(
            dsn,
            CHANNEL,
            self.waiters,
            ENGINE,
            on_connected=self.on_connected,
            beat=self.beat,
            heartbeat=heartbeat,
            on_lost=self.on_lost,
        )

    async def on_connected(self, connection: Connection) -> None:
        await connection.execute("select pg_advisory_lock_shared(1)")
        self.connections.append(connection)
        connection.add_query_logger(lambda query: self.queries.append(query.query))

    async def beat(self, connection: Connection) -> None:
        if self.broken is not None:
            raise self.broken
        await connection.execute("select pg_notify($1, $2)", CHANNEL, f"!{ENGINE}")
        self.beats += 1

    def on_lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def running(dsn: str, *, heartbeat: float = 1.0, wait: bool = True) -> AsyncIterator[Rig]:
    """A listener at work; `wait` until it has proved that it hears."""
    rig = Rig(dsn, heartbeat)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(rig.listener.run(started=rig.started), name="listener")
        if wait:
            async with asyncio.timeout(10):
                await rig.started.wait()
        yield rig
        task.cancel()


class Mailbox:
    """A table of messages and those who wait for them: what a lost bell would delay."""

    def __init__(self, writer: Connection, reader: Connection, waiters: Waiters) -> None:
        self._writer = writer
        self._reader = reader
        self._reading = asyncio.Lock()
        self._waiters = waiters
        self.looks = 0

    async def put(self, n: int) -> None:
        """Commit message `n`, and ring no bell."""
        await self._writer.execute("insert into message values ($1, $2)", n, time.monotonic())

    async def send(self, n: int) -> None:
        """Commit message `n` together with its bell."""
        async with self._writer.transaction():
            await self.put(n)
            await self._writer.execute("select pg_notify($1, $2)", CHANNEL, f":{KEY}")

    async def receive(self, n: int) -> float:
        """Wait for message `n`: the seconds that passed since it was sent."""
        async with asyncio.timeout(8):  # a deadline of the wait would look again by itself
            sent = await self._waiters.until([KEY], lambda: self._look(n))
        assert sent is not None
        return time.monotonic() - sent

    async def _look(self, n: int) -> float | None:
        async with self._reading:
            self.looks += 1
            sent: float | None = await self._reader.fetchval("select sent from message where n = $1", n)
            return sent


@pytest.fixture
async def mailbox(dsn: str, admin: Connection) -> AsyncIterator[Callable[[Waiters], Mailbox]]:
    await admin.execute("create table message (n int primary key, sent float8)")
    async with AsyncExitStack() as stack:
        reader, writer = [await asyncpg.connect(dsn) for _ in range(2)]
        stack.callback(reader.terminate)
        stack.callback(writer.terminate)
        yield lambda waiters: Mailbox(writer, reader, waiters)


async def ring(admin: Connection, payload: str) -> None:
    await admin.execute("select pg_notify($1, $2)", CHANNEL, payload)


async def kill(admin: Connection) -> None:
    """Terminate the backend of the listener, if there is one just now."""
    await admin.execute(f"select pg_terminate_backend(pid) {MINE}")


async def none_left(admin: Connection) -> None:
    async with asyncio.timeout(5):
        while await admin.fetchval(f"select count(*) {MINE}"):
            await asyncio.sleep(0.01)


async def looked(box: Mailbox, times: int) -> None:
    async with asyncio.timeout(5):
        while box.looks < times:
            await asyncio.sleep(0.001)


def soon() -> float:
    return _clock.monotonic() + 5


async def test_n2_a_bell_wakes_those_who_wait_for_its_keys(dsn: str, admin: Connection) -> None:
    async with running(dsn) as rig:
        third = _keys.wake_key("event", "order-1", "pay_url")
        with (
            rig.waiters.register([KEY]) as one,
            rig.waiters.register([OTHER]) as two,
            rig.waiters.register([third]) as three,
        ):
            await ring(admin, f":{KEY}{OTHER}")
            assert await one.wait(soon())
            assert await two.wait(soon())
            await ring(admin, f"{'f' * 16}:{third}")  # another engine's mark
            assert await three.wait(soon())
            one.clear()
            two.clear()
            await ring(admin, f":{OTHER}")
            assert await two.wait(soon())
            assert not await one.wait(0)
        assert rig.listener.statistics().bells == 3


async def test_n3_bells_with_its_own_mark_are_ignored(dsn: str, admin: Connection) -> None:
    async with running(dsn) as rig:
        with rig.waiters.register([KEY]) as mine, rig.waiters.register([OTHER]) as after:
            await ring(admin, f"{ENGINE}:{KEY}")
            await ring(admin, f":{OTHER}")
            assert await after.wait(soon())
            assert not await mine.wait(0)


@pytest.mark.parametrize("payload", ["", ":", "x", "!", f"!{'f' * 16}", "::::", f"{KEY}", ":é" + "z" * 7000])
async def test_anybody_may_ring_nonsense(dsn: str, admin: Connection, payload: str) -> None:
    async with running(dsn) as rig:
        with rig.waiters.register([KEY]) as waiter:
            await ring(admin, payload)
            await ring(admin, f":{KEY}")
            assert await waiter.wait(soon())
        assert rig.lost == 0


async def test_n1_an_idle_process_sends_its_heartbeat_and_nothing_else(dsn: str) -> None:
    async with running(dsn, heartbeat=0.05) as rig:
        async with asyncio.timeout(5):
            while rig.beats < 6:
                await asyncio.sleep(0.01)
        assert rig.beats - len(rig.queries) in (0, 1)  # one may be on its way
        assert set(rig.queries) == {"select pg_notify($1, $2)"}
        assert rig.lost == 0


async def test_n4_the_heartbeat_comes_back(dsn: str) -> None:
    async with running(dsn, heartbeat=0.05) as rig:
        first = rig.listener.statistics().last_heard
        assert first is not None  # before `started`
        beats = rig.beats
        async with asyncio.timeout(5):
            while rig.beats < beats + 3:
                await asyncio.sleep(0.01)
        last = rig.listener.statistics().last_heard
        assert last is not None
        assert last > first + 0.05
        assert rig.listener.statistics().connected


async def test_the_heart_beats_on_when_a_test_stops_the_clock(dsn: str) -> None:
    uninstall = _clock.install(FakeClock())
    try:
        async with running(dsn, heartbeat=0.05) as rig, asyncio.timeout(5):
            while rig.beats < 4:
                await asyncio.sleep(0.01)
    finally:
        uninstall()


@pytest.mark.parametrize("directions", [(Direction.TO_SERVER,), (Direction.TO_CLIENT,), tuple(Direction)])
async def test_n4_a_half_open_connection_is_noticed_within_3_s(
    dsn: str,
    signals: Signals,
    mailbox: Callable[[Waiters], Mailbox],
    directions: tuple[Direction, ...],
) -> None:
    async with Proxy(dsn) as proxy, running(proxy.dsn) as rig:
        box = mailbox(rig.waiters)
        await signals.next("listener.connected")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(box.receive(1))
            await looked(box, 1)
            proxy.strand(*directions)
            since = time.monotonic()
            await box.send(1)
            await signals.next("listener.lost")
            noticed = time.monotonic() - since
            await signals.next("listener.connected")
            back = time.monotonic() - since - noticed
        print(f"noticed after {noticed:.3f} s, back after {back:.4f} s, delayed {waiting.result():.3f} s")
        assert noticed <= 4
        assert back <= 2
        assert waiting.result() <= 6
        assert (rig.lost, len(rig.connections)) == (1, 2)


async def test_n4_a_deaf_connection_is_noticed_within_3_s(
    dsn: str, signals: Signals, mailbox: Callable[[Waiters], Mailbox]
) -> None:
    async with Proxy(dsn) as proxy, running(proxy.dsn) as rig:
        box = mailbox(rig.waiters)
        await signals.next("listener.connected")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(box.receive(1))
            await looked(box, 1)
            proxy.deafen()
            since = time.monotonic()
            await box.send(1)
            await signals.next("listener.lost")
            noticed = time.monotonic() - since
        print(f"noticed after {noticed:.3f} s, delayed {waiting.result():.3f} s")
        assert noticed <= 4
        assert waiting.result() <= 6  # served by the look after LISTEN, though still deaf
        proxy.heal()
        await signals.next("listener.connected")
        looks = box.looks
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(box.receive(2))
            await looked(box, looks + 1)
            await box.send(2)
        assert waiting.result() <= 2


async def test_n4_who_unlistens_by_accident_is_noticed(dsn: str, signals: Signals) -> None:
    async with running(dsn) as rig:
        await signals.next("listener.connected")
        since = time.monotonic()
        await rig.connections[0].execute("unlisten *")
        await signals.next("listener.connected")
        assert time.monotonic() - since <= 6


async def test_n4_after_every_listen_all_waiters_look_once(
    dsn: str, admin: Connection, signals: Signals, mailbox: Callable[[Waiters], Mailbox]
) -> None:
    async with running(dsn) as rig:
        box = mailbox(rig.waiters)
        await signals.next("listener.connected")
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(box.receive(n)) for n in range(100)]
            await looked(box, 100)
            await box.put(7)  # its bell is one of those that nobody heard
            await kill(admin)
            await signals.next("listener.connected")
            assert await waiting[7] <= 2
            await looked(box, 200)
            assert sum(task.done() for task in waiting) == 1
            for task in waiting:
                task.cancel()
        assert box.looks == 200
        assert rig.waiters.statistics().waiting == 0


async def test_n5_a_killed_backend_delays_nothing_by_more_than_300_ms(
    dsn: str, admin: Connection, signals: Signals, mailbox: Callable[[Waiters], Mailbox]
) -> None:
    delays = []
    async with running(dsn) as rig:
        box = mailbox(rig.waiters)
        for n in range(20):
            await signals.next("listener.connected")  # there is something to kill
            looks = box.looks
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(box.receive(n))
                await looked(box, looks + 1)
                await kill(admin)
                await box.send(n)
            delays.append(waiting.result())
        median = sorted(delays)[10]
        print(f"delays: median {median * 1000:.1f} ms, most {max(delays) * 1000:.1f} ms")
        assert median <= 0.3
        assert max(delays) <= 3


async def test_n5_a_backend_killed_every_100_ms_costs_delay_and_no_message(
    dsn: str, admin: Connection, mailbox: Callable[[Waiters], Mailbox]
) -> None:
    async with running(dsn) as rig:
        box, delays, over = mailbox(rig.waiters), [], asyncio.Event()

        async def killing() -> None:
            async with asyncio.timeout(60):
                while rig.lost < 30:
                    await kill(admin)
                    await asyncio.sleep(0.1)
            over.set()

        async def talking() -> None:
            n = 0
            while not over.is_set():
                n += 1
                async with asyncio.TaskGroup() as pair:
                    waiting = pair.create_task(box.receive(n))
                    await asyncio.sleep(0.0137)  # not in step with the killing
                    await box.send(n)
                delays.append(waiting.result())

        async with asyncio.TaskGroup() as group:
            group.create_task(killing())
            group.create_task(talking())
        statistics = rig.listener.statistics()
        median = sorted(delays)[len(delays) // 2]
        print(
            f"{len(delays)} messages, {statistics.reconnects} reconnects: median"
            f" {median * 1000:.1f} ms, most {max(delays) * 1000:.1f} ms"
        )
        assert len(delays) >= 30
        assert rig.lost - statistics.reconnects in (0, 1)  # killed, and not yet back
        assert median <= 0.3
        assert max(delays) <= 3


async def test_what_belongs_to_the_session_is_taken_again(
    dsn: str, admin: Connection, signals: Signals
) -> None:
    locks = (
        "select count(*) from pg_locks where locktype = 'advisory' and database = ("
        "select oid from pg_database where datname = current_database())"
    )
    async with running(dsn) as rig:
        await signals.next("listener.connected")
        await kill(admin)
        await signals.next("listener.connected")
        assert await admin.fetchval(locks) == 1
        assert (rig.lost, len(rig.connections)) == (1, 2)
        assert rig.listener.statistics().reconnects == 1


async def test_a_server_that_is_away_is_waited_for(dsn: str, signals: Signals) -> None:
    async with Proxy(dsn) as proxy:
        proxy.refuse()
        async with running(proxy.dsn, wait=False) as rig:
            for _ in range(5):
                await signals.next("listener.retry")
            assert not rig.started.is_set()
            proxy.heal()
            since = time.monotonic()
            await signals.next("listener.connected")
            assert time.monotonic() - since <= 5
            await rig.started.wait()
            proxy.refuse()
            proxy.reset()
            for _ in range(5):
                await signals.next("listener.retry")
            proxy.heal()
            since = time.monotonic()
            await signals.next("listener.connected")
            assert time.monotonic() - since <= 5


async def test_latency_of_300_ms_is_no_fault(dsn: str, signals: Signals) -> None:
    async with Proxy(dsn) as proxy:
        proxy.delay(0.15)
        async with running(proxy.dsn, heartbeat=1) as rig:
            beats = rig.beats
            async with asyncio.timeout(10):
                while rig.beats < beats + 2:
                    await asyncio.sleep(0.01)
            assert rig.lost == 0


async def test_what_makes_no_sense_at_the_start_is_raised(dsn: str) -> None:
    rig = Rig(dsn, 1)
    rig.broken = asyncpg.UndefinedFunctionError("function holdfast.beat() does not exist")
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await rig.listener.run(started=rig.started)
    assert not rig.listener.statistics().connected
    with pytest.raises(ConfigurationError):
        await Rig("postgresql://localhost:nonsense/x", 1).listener.run(started=rig.started)


async def test_what_makes_no_sense_later_is_tried_again(
    dsn: str, signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(dsn, heartbeat=0.05) as rig:
        rig.broken = asyncpg.UndefinedFunctionError("function holdfast.beat() does not exist")
        await signals.next("listener.lost")
        await signals.next("listener.retry")
        rig.broken = Retryable("the server refused for now (40P01)")
        await signals.next("listener.retry")
        rig.broken = None
        await signals.next("listener.connected")
        assert rig.lost == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the listening connection was lost: UndefinedFunctionError (42883)",
        "cannot listen for notifications, trying again: UndefinedFunctionError (42883)",
    ]


async def test_a_bug_of_ours_ends_it(dsn: str, admin: Connection) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with running(dsn, heartbeat=0.05) as rig:
            rig.broken = KeyError("bug")
            await asyncio.Event().wait()
    assert caught.group_contains(KeyError)
    await none_left(admin)


async def test_cancel_leaves_nothing(dsn: str, admin: Connection) -> None:
    async with running(dsn) as rig:
        assert await admin.fetchval(f"select count(*) {MINE}") == 1
    assert not rig.listener.statistics().connected
    assert rig.lost == 0  # leaving is not losing
    await none_left(admin)


@pytest.mark.parametrize("milliseconds", range(16))
async def test_cancel_at_any_moment_leaves_nothing(dsn: str, admin: Connection, milliseconds: int) -> None:
    rig = Rig(dsn, 0.01)
    task = asyncio.ensure_future(rig.listener.run(started=rig.started))
    await asyncio.sleep(milliseconds / 1000)  # somewhere between connecting and the third beat
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not rig.listener.statistics().connected
    await none_left(admin)
