"""Moves time, so that a test need not wait for it: the database's, and that of this process.

Deadlines go by the database's clock, which is one SQL function; what one process measures for itself (leases,
patience) goes by its own. Nothing here slows or stops a clock: it goes on from where it was put.
"""

from __future__ import annotations

import gc
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

import asyncpg

from holdfast import _clock
from holdfast._engine.waiters import Waiters
from holdfast.config import check_schema_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DatabaseClock", "ProcessClock"]


class DatabaseClock:
    """The clock of a test database: every deadline of every workflow in it goes by it.

    Executors stay alive over a jump, as if their heartbeats had gone on. Leaving the block puts it right. A
    deadline counts from when it is recorded, so wait for that before you jump.

    ```python
    async with DatabaseClock(holdfast_dsn) as clock:
        handle = await rt.start(remind_me_in_a_month())
        while not await rt.steps(handle.id):  # until the sleep is in the journal
            await asyncio.sleep(0.01)
        await clock.advance(timedelta(days=30))
        await handle.result(timeout=5)
    ```
    """

    def __init__(self, dsn: str, *, schema: str = "holdfast") -> None:
        self._dsn = dsn
        self._schema = check_schema_name(schema)
        self._offset = timedelta()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @property
    def offset(self) -> timedelta:
        """How far the database is ahead."""
        return self._offset

    async def __aenter__(self) -> DatabaseClock:
        self._connection = await asyncpg.connect(self._dsn)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._move_to(timedelta())
            await self._connection.close()

    async def advance(self, by: float | timedelta) -> None:
        """Moves on by so many seconds, or back; what waits in this process looks again at once."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        await self._move_to(self._offset + step)
        _wake_all()

    async def _move_to(self, offset: timedelta) -> None:
        connection = self._connection
        if connection is None:
            raise RuntimeError("use the clock inside its `async with` block")
        seconds = offset.total_seconds()
        ahead = f" + interval '{seconds:.6f} seconds'" if seconds else ""
        async with connection.transaction():
            await connection.execute(
                f"create or replace function {self._schema}.now() returns timestamptz language sql volatile "
                f"as $$ select pg_catalog.clock_timestamp(){ahead} $$"
            )
            beat = f"update {self._schema}.executors set heartbeat_at = heartbeat_at + $1"  # noqa: S608 - checked
            await connection.execute(beat, offset - self._offset)
        self._offset = offset


class ProcessClock:
    """The clocks of this process, as the library reads them, for the length of a `with` block.

    `jump` is what an administrator does to the wall clock; `freeze` is what a process sees that was stopped:
    much time has passed by every clock, and it has done nothing.
    """

    def __init__(self) -> None:
        self._wall = 0.0
        self._passed = 0.0
        self._uninstall: Callable[[], None] | None = None

    def __enter__(self) -> ProcessClock:
        self._uninstall = _clock.install(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._uninstall is not None:
            self._uninstall()

    def monotonic(self) -> float:
        """Seconds, with those that `freeze` has added."""
        return time.monotonic() + self._passed

    def time_ns(self) -> int:
        """Nanoseconds since 1970, with what `freeze` and `jump` have added."""
        return time.time_ns() + round((self._wall + self._passed) * 1_000_000_000)

    def jump(self, seconds: float) -> None:
        """Puts the wall clock forward, or back."""
        self._wall += seconds

    def freeze(self, seconds: float) -> None:
        """Lets so much time have passed; what waits in this process looks again at once."""
        self._passed += seconds
        _wake_all()


def _wake_all() -> None:
    """Timers that are already set run in real time, so whoever waits has to look at the new time."""
    # Found among their class's referrers, so that no production code keeps a list for the sake of tests.
    for waiters in gc.get_referrers(Waiters):
        if isinstance(waiters, Waiters):
            waiters.wake_all()
            waiters.wake_timers()
