"""The one connection of a process that listens: NOTIFY becomes `wake`, and it proves that it hears.

A connection can be dead without anybody being told: half-open, swallowed by a firewall, or alive but deaf.
So the heartbeat of the process, which must be sent anyway, also rings a bell for this very process, and a
bell that does not come back in time ends the connection [N4]. After every LISTEN all waiters look once,
since bells that rang before it are gone; so a lost connection costs some milliseconds and no truth [N2]
[N5]. What a bell means, and what the heartbeat says, is not known here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import asyncpg

from holdfast import _clock
from holdfast._backoff import Backoff
from holdfast._engine.waiters import Alarm, Waiters
from holdfast._observe import logger, point, signal
from holdfast._store.connection import Connection, ConnectionLost, Retryable, StoreError, connect, deadline
from holdfast.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Listener", "ListenerStatistics"]

KEY_LENGTH: Final = 16
"""Characters of a key inside a bell (`_keys.wake_key`)."""

SETUP_TIMEOUT: Final = 5.0
"""Seconds for connecting, and again for LISTEN and what the engine does on a new connection."""

# What a database in trouble may say; everything else is a bug and ends the engine.
_TROUBLE: Final = (StoreError, asyncpg.PostgresError, ConfigurationError)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenerStatistics:
    """`last_heard`: when the last heartbeat's bell came back, by `_clock.monotonic()`; None: never yet."""

    connected: bool
    reconnects: int
    bells: int
    last_heard: float | None


class Listener:
    """Keeps one connection listening on `channel` for as long as `run` runs, and wakes `waiters`.

    A bell is `<mark>:<keys>`: the sending engine's id, or nothing, and keys of 16 characters one behind the
    other. Bells with this engine's own mark are ignored: their sender has woken its waiters directly [N3].

    `on_connected` is called on every new connection, after LISTEN, to take again what belongs to a session.
    `beat` is called every `heartbeat` seconds; it must notify `channel` with `!<engine_id>` in its commit.
    `on_lost` is called at once when a connection that had worked is gone.
    """

    def __init__(
        self,
        dsn: str,
        channel: str,
        waiters: Waiters,
        engine_id: str,
        *,
        on_connected: Callable[[Connection], Awaitable[None]],
        beat: Callable[[Connection], Awaitable[None]],
        heartbeat: float = 1.0,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._channel = channel
        self._waiters = waiters
        self._engine_id = engine_id
        self._on_connected = on_connected
        self._beat = beat
        self._heartbeat = heartbeat
        # A connection that dies right after a beat is noticed by the next: within 2.75 s at one a second.
        self._patience = max(1.75 * heartbeat, 1.0)
        self._on_lost = on_lost
        self._news = Alarm()
        self._connection: Connection | None = None
        self._listening = False
        self._outage = False
        self._connects = 0
        self._bells = 0
        self._last_heard: float | None = None

    async def run(self, *, started: asyncio.Event) -> NoReturn:
        """Listen until cancelled; sets `started` when the first connection has proved that it hears.

        A database that is away is waited for without end. What makes no sense before `started` (a refused
        log-in, a missing function) is raised; later it is logged and tried again, for it may pass.
        """
        while True:
            connection = await self._open(started)
            try:
                started.set()
                error = await self._keep(connection)
            finally:
                self._leave(connection)
            logger.warning("the listening connection was lost: %s", _text(error))
            signal("listener.lost")
            if self._on_lost is not None:
                self._on_lost()

    def statistics(self) -> ListenerStatistics:
        """Counts, for tests and metrics."""
        return ListenerStatistics(
            connected=self._connection is not None,
            reconnects=max(self._connects - 1, 0),
            bells=self._bells,
            last_heard=self._last_heard,
        )

    async def _open(self, started: asyncio.Event) -> Connection:
        """Connect, the first time at once, then ever more slowly, until it works."""
        backoff = Backoff(initial=0.01, maximum=0.5, jitter=0.02)
        while True:
            try:
                return await self._set_up()
            except _TROUBLE as error:
                if not started.is_set() and not isinstance(error, (ConnectionLost, Retryable)):
                    raise
                self._tell_outage(error)
                if self._listening and isinstance(error, ConnectionLost):
                    backoff.reset()  # cut off again, not turned away: bells are missed meanwhile
            await asyncio.sleep(backoff.next())

    async def _set_up(self) -> Connection:
        self._listening = False
        connection = await connect(self._dsn, role="listener", timeout=SETUP_TIMEOUT)
        self._connection = connection
        try:
            connection.add_termination_listener(self._on_terminated)
            async with deadline(connection, SETUP_TIMEOUT):
                await connection.add_listener(self._channel, self._on_notify)
                self._listening = True
                point("listener.listening")
                self._waiters.wake_all()
                await self._on_connected(connection)
                await self._prove(connection)
        except BaseException:
            self._leave(connection)
            raise
        self._outage = False
        self._connects += 1
        signal("listener.connected", connects=self._connects)
        return connection

    async def _keep(self, connection: Connection) -> Exception:
        """Beat until the connection fails, and return why."""
        try:
            while True:
                await self._rest(connection)
                await self._prove(connection)
        except _TROUBLE as error:
            return error

    async def _rest(self, connection: Connection) -> None:
        """Wait until the next beat is due; a connection that ends cuts it short."""
        self._news.clear()
        if not connection.is_closed():
            await self._news.pause(self._heartbeat)

    async def _prove(self, connection: Connection) -> None:
        """Send the heartbeat and hear its bell, or end the connection."""
        self._news.clear()
        async with deadline(connection, self._patience):
            await self._beat(connection)
            await self._news.wait()
            if connection.is_closed():
                raise ConnectionLost("the listener does not hear itself")

    def _leave(self, connection: Connection) -> None:
        self._connection = None
        connection.terminate()

    def _on_terminated(self, connection: object) -> None:
        if connection is self._connection:
            self._news.ring()

    def _on_notify(self, connection: object, _pid: int, _channel: str, payload: object) -> None:
        """What asyncpg calls for every notification. Sync: of an async callback it would forget the task."""
        bell = str(payload)
        if bell.startswith("!"):
            if bell[1:] == self._engine_id and connection is self._connection:
                self._last_heard = _clock.monotonic()
                self._news.ring()
            return
        mark, _, keys = bell.partition(":")
        if mark == self._engine_id:
            return
        self._bells += 1
        for start in range(0, len(keys), KEY_LENGTH):
            self._waiters.wake(keys[start : start + KEY_LENGTH])

    def _tell_outage(self, error: Exception) -> None:
        signal("listener.retry")
        if not self._outage:
            self._outage = True
            logger.warning("cannot listen for notifications, trying again: %s", _text(error))


def _text(error: Exception) -> str:
    """The error in words that hold no data: the server's own may."""
    if isinstance(error, asyncpg.PostgresError):
        return f"{type(error).__name__} ({error.sqlstate})"
    return str(error)
