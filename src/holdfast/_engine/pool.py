"""A few connections, lent one at a time. It survives the database: broken ones are dropped and replaced.

asyncpg's own pool hangs on a half-open connection, whatever timeouts it is given: so this one asks the server
nothing when a connection comes back, and never closes one politely. No task and no loop lives in here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from holdfast import _clock
from holdfast._backoff import delays
from holdfast._observe import logger, signal
from holdfast._store.connection import Connection, ConnectionLost, Retryable, StoreError, connect
from holdfast.errors import DatabaseUnavailable, NotRunning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Pool", "PoolStatistics"]

IDLE_LIMIT: Final = 60.0
"""Seconds without use after which a firewall may have forgotten a connection: it is not lent again."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that one try to connect may take; 300 ms of latency and TLS make two of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolStatistics:
    """Connections now, and what became of them since the start."""

    size: int
    busy: int
    idle: int
    waiting: int
    opened: int
    dropped: int


class Pool:
    """At most `size` connections to `dsn`. Who asks for one waits up to `patience` seconds, in turn.

    Opens nothing until the first `acquire`.
    """

    def __init__(self, dsn: str, size: int, patience: float, *, role: str = "pool") -> None:
        self._dsn = dsn
        self._size = size
        self._patience = patience
        self._role = role
        self._slots = asyncio.Semaphore(size)
        self._idle: deque[tuple[Connection, float]] = deque()
        self._busy: set[Connection] = set()
        self._all_back = asyncio.Event()
        self._all_back.set()
        self._waiting = 0
        self._opened = 0
        self._dropped = 0
        self._closed = False
        self._outage = False

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """Lend a connection for the block. It keeps its session state: leave none behind.

        A connection that comes back inside a transaction, from a cancelled block or broken is thrown away.
        Errors of the block pass as they are.

        Raises:
            DatabaseUnavailable: if there was none to have for `patience` seconds.
            ConfigurationError: if the database refuses the log-in.
            NotRunning: if the pool is closed.
        """
        deadline = _clock.monotonic() + self._patience
        await self._take_slot(deadline)
        try:
            connection = self._take_idle() or await self._open(deadline)
            self._busy.add(connection)
            self._all_back.clear()
            try:
                yield connection
            except BaseException as error:
                self._judge(connection, error)
                raise
            finally:
                self._put_back(connection)
        finally:
            self._slots.release()

    async def aclose(self, timeout: float = 2.0) -> None:
        """Close the pool: connections still lent have `timeout` seconds to come back, then they are cut."""
        self._closed = True
        self._drop_idle()
        try:
            async with asyncio.timeout(timeout):
                await self._all_back.wait()
        except TimeoutError:
            logger.warning("closing the pool cuts off %d connections in use", len(self._busy))
        finally:
            for connection in tuple(self._busy):
                connection.terminate()
        # The sockets close in the next turn of the loop; uvloop needs one more.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def statistics(self) -> PoolStatistics:
        """Counts, for tests and metrics."""
        return PoolStatistics(
            size=self._size,
            busy=len(self._busy),
            idle=len(self._idle),
            waiting=self._waiting,
            opened=self._opened,
            dropped=self._dropped,
        )

    async def _take_slot(self, deadline: float) -> None:
        self._check_open()
        self._waiting += 1
        try:
            async with asyncio.timeout(deadline - _clock.monotonic()):
                await self._slots.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(
                f"all {self._size} connections of the pool were in use for {self._patience:g} s"
            ) from None
        finally:
            self._waiting -= 1

    def _check_open(self) -> None:
        if self._closed:
            raise NotRunning("the connection pool is closed")

    def _take_idle(self) -> Connection | None:
        """The connection used last, if there is one still good; what has been idle too long goes."""
        stale = _clock.monotonic() - IDLE_LIMIT
        while self._idle and self._idle[0][1] < stale:
            self._drop(self._idle.popleft()[0])
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._drop(connection)
        return None

    async def _open(self, deadline: float) -> Connection:
        """Open a connection, trying again until `deadline`, or take one that has come back meanwhile."""
        for pause in delays(0.05, 0.5, jitter=0.05):
            self._check_open()
            try:
                return self._take_idle() or await self._connect(deadline)
            except (ConnectionLost, Retryable) as error:
                remaining = deadline - _clock.monotonic()
                if remaining <= 0:
                    raise self._unavailable(error) from error
                self._tell_outage(error)
            await asyncio.sleep(min(pause, remaining))
        raise AssertionError("delays never end")

    async def _connect(self, deadline: float) -> Connection:
        timeout = min(CONNECT_TIMEOUT, max(deadline - _clock.monotonic(), 0.1))
        connection = await connect(self._dsn, role=self._role, timeout=timeout)
        self._opened += 1
        self._outage = False
        if self._closed:
            self._drop(connection)
            self._check_open()
        return connection

    def _tell_outage(self, error: StoreError) -> None:
        signal("pool.retry", role=self._role)
        if not self._outage:
            self._outage = True
            logger.warning("%s; trying again for %g s", error, self._patience)

    def _unavailable(self, error: StoreError) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"no connection to the database for {self._patience:g} s: {error}")

    def _judge(self, connection: Connection, error: BaseException) -> None:
        """Throw away what an error makes suspect: a connection that may still be busy, or all of them."""
        if isinstance(error, ConnectionLost):
            self._drop_idle()
        if isinstance(error, (ConnectionLost, TimeoutError)) or not isinstance(error, Exception):
            connection.terminate()

    def _put_back(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if self._closed or connection.is_closed() or connection.is_in_transaction():
            self._drop(connection)
        else:
            self._idle.append((connection, _clock.monotonic()))
        if not self._busy:
            self._all_back.set()

    def _drop(self, connection: Connection) -> None:
        connection.terminate()
        self._dropped += 1

    def _drop_idle(self) -> None:
        while self._idle:
            self._drop(self._idle.popleft()[0])
