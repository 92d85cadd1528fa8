"""What any process needs to talk to workflows and to wait for them: pool, listener, waiters, writer, lookups.

An engine knows nothing of running workflows: what its heartbeat says, and what a new session must take again,
is told by the `Heart` that it is given. A client's heart only rings; a runtime's holds the lease.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

from holdfast import _clock, _keys
from holdfast._backoff import delays
from holdfast._codec import Codec, ErrorRegistry
from holdfast._engine.callers import Callers
from holdfast._engine.listener import Listener, ListenerStatistics
from holdfast._engine.lookups import Lookups, LookupStatistics
from holdfast._engine.pool import Pool, PoolStatistics
from holdfast._engine.tails import Tails
from holdfast._engine.waiters import Waiters, WaitersStatistics
from holdfast._engine.writer import Writer, WriterStatistics
from holdfast._observe import logger
from holdfast._sql import migrate, statements
from holdfast._store import executors
from holdfast._store.connection import Connection, ConnectionLost, Retryable, deadline, unavailable
from holdfast.config import Settings
from holdfast.errors import DatabaseUnavailable
from holdfast.types import PayloadContext

CLOSE_PATIENCE = 0.25
"""Seconds that connections still lent get to come back when the engine ends."""
SERVICE_CONNECTIONS = 2
"""Connections for the engine's own short calls, so that users' transactions never stand in their way."""
CALL_DEADLINE = 15.0
"""Seconds that one call over the pool may take before its connection is taken for dead."""
LONG_DEADLINE = 600.0
"""Seconds that a call may take which copies or rewrites a whole workflow, of whatever size."""
SETUP_DEADLINE = 30.0
"""Seconds that checking or migrating the schema may take."""


T = TypeVar("T")


class Statistics(NamedTuple):
    """What the parts of an engine have done so far, and what waits in them."""

    writer: WriterStatistics
    waiters: WaitersStatistics
    listener: ListenerStatistics
    lookups: LookupStatistics
    pool: PoolStatistics


class Heart(Protocol):
    """What the listener's connection says of this process."""

    async def connected(self, connection: Connection) -> None:
        """A new session listens: take again what a session holds."""

    async def beat(self, connection: Connection) -> None:
        """Say that the process lives, and ring its own bell."""

    def lost(self) -> None:
        """The session is gone; another is being opened."""


class Engine:
    """Composed here, run by `run` as one task of whoever owns it."""

    def __init__(
        self,
        dsn: str,
        *,
        listen_dsn: str | None = None,
        schema: str,
        settings: Settings,
        errors: ErrorRegistry,
        app_version: str | None = None,
        migrate: bool = True,
    ) -> None:
        self.codec: Codec = Codec(schema, settings.max_payload, settings.codec)
        self.errors = errors
        self.id: str = secrets.token_hex(8)
        self.schema = schema
        self.settings = settings
        self.sql: statements.Statements = statements.load(schema)
        self.channel: str = _keys.channel(schema)
        self.waiters: Waiters = Waiters()
        self.pool: Pool = Pool(dsn, settings.pool_size, settings.database_patience)
        """For what users hold for as long as they like: transactions."""
        self._service = Pool(dsn, SERVICE_CONNECTIONS, settings.database_patience, role="service")
        self.writer: Writer = Writer(
            dsn, self.sql["commits.batch"], self.channel, self.id, self.waiters, settings, app_version
        )
        self.callers: Callers = Callers(self.sql, self.ask)
        self.lookups: Lookups = Lookups(dsn, self.sql, settings)
        self.tails: Tails = Tails(self.lookups, self.waiters)
        self.heart: Heart = Bell(self)
        self._dsn = dsn
        self._listen_dsn = listen_dsn or dsn
        self._migrate = migrate
        self._listener: Listener | None = None

    async def prepare(self) -> None:
        """Creates or checks the schema.

        Raises:
            SchemaError: if the schema is missing or of another version and may not be migrated.
            DatabaseUnavailable: if there was no database for `Settings.database_patience` seconds.
        """
        async with self._service.acquire() as connection:
            try:
                async with deadline(connection, SETUP_DEADLINE):
                    if self._migrate:
                        await migrate.migrate(connection, self.schema)
                    else:
                        await migrate.verify(connection, self.schema)
            except (ConnectionLost, Retryable) as error:
                raise DatabaseUnavailable(
                    "the database went away while its schema was being checked"
                ) from error

    async def ask(
        self, act: Callable[[Connection], Awaitable[T]], *, insist: bool = False, long: bool = False
    ) -> T:
        """Does something short with a connection; it is done again when the connection is lost, so it
        must be something that may be done twice. With `insist` it goes on for ever. What may be `long`
        takes a connection of the users' pool, so that nothing short waits behind it.

        Raises:
            DatabaseUnavailable: if the database was away for `Settings.database_patience` seconds.
        """
        until = _clock.monotonic() + self.settings.database_patience
        pauses = delays(0.02, 1.0)
        pool, limit = (self.pool, LONG_DEADLINE) if long else (self._service, CALL_DEADLINE)
        while True:
            try:
                async with pool.acquire() as connection, deadline(connection, limit):
                    return await act(connection)
            except (ConnectionLost, Retryable, DatabaseUnavailable) as error:
                if not insist and _clock.monotonic() >= until:
                    raise unavailable(error) from error
            except Exception:
                # A refused log-in, a missing right, a full disk: may pass, and must not end what never ends.
                if not insist:
                    raise
                logger.exception("the database refuses; this is tried again")
            await asyncio.sleep(next(pauses))

    async def run(self, started: asyncio.Event) -> None:
        """Runs the machinery until cancelled; sets `started` once it listens and can commit."""
        heart, heard = self.heart, asyncio.Event()
        self._listener = Listener(
            self._listen_dsn,
            self.channel,
            self.waiters,
            self.id,
            on_connected=heart.connected,
            beat=heart.beat,
            heartbeat=self.settings.heartbeat,
            on_lost=heart.lost,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listener.run(started=heard), name="holdfast listener")
                group.create_task(self._start(heard, started), name="holdfast start")
                group.create_task(self.lookups.run(), name="holdfast lookups")
                for lane in self.writer.lanes:
                    group.create_task(lane.run(), name=f"holdfast writer {lane.number}")
        finally:
            # Whoever still waits looks once more, and is told that nobody answers.
            self.waiters.wake_all()
            await self.aclose()

    async def aclose(self) -> None:
        """Closes the pools: for an engine that does not come to run; `run` does so when it ends."""
        await self.pool.aclose(CLOSE_PATIENCE)
        await self._service.aclose(CLOSE_PATIENCE)

    async def _start(self, heard: asyncio.Event, started: asyncio.Event) -> None:
        """The engine can be used once it hears, and its lanes have had their first try at a connection."""
        await heard.wait()
        for lane in self.writer.lanes:
            await lane.warm.wait()
        started.set()

    def same_database(self, other: "Engine") -> bool:
        """Do both lead to one schema of one database, as far as their addresses tell?"""
        return self is other or (self._dsn, self.schema) == (other._dsn, other.schema)

    def context(self, workflow_id: str, kind: str, name: str = "") -> PayloadContext:
        """The identity of a payload: what a codec is told."""
        return PayloadContext(schema=self.schema, workflow_id=workflow_id, kind=kind, name=name)

    def statistics(self) -> Statistics:
        """Counts of all the parts."""
        assert self._listener is not None, "the engine has not run yet"
        return Statistics(
            self.writer.statistics(),
            self.waiters.statistics(),
            self._listener.statistics(),
            self.lookups.statistics(),
            self.pool.statistics(),
        )


class Bell:
    """The heart of an engine that runs no workflows: it only proves that the listener hears."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def connected(self, connection: Connection) -> None:
        """Nothing belongs to this session."""

    async def beat(self, connection: Connection) -> None:
        """Rings this engine's own bell."""
        engine = self._engine
        await executors.beat(
            connection, engine.sql, None, held=True, channel=engine.channel, bell=f"!{engine.id}"
        )

    def lost(self) -> None:
        """Nothing was held."""
