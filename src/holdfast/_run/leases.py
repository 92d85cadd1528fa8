"""Whose workflow is it? How this process stays their executor, notices that it is not any more, and takes
over from the dead.

An executor is one incarnation of a process: a row with a heartbeat by the database's clock, and an advisory
lock held by the listener's session, which falls the moment the process dies. Three rules make that safe:

- Nobody writes for a workflow without the executor's fence, inside the commit. Who declares an executor dead
  fences it first; after that none of its batches can land [W14]. So a wrong guess costs time, never truth.
- A heartbeat older than the lease is proof of death. A fallen lock is a hint: it is believed when the
  heartbeat is missing as well. Nobody asks for that again and again: each heartbeat is told, in its answer,
  whether another's is missing [N1].
- This executor counts its own lease by its own monotonic clock, from before it sent its last renewal. When
  that has run out, it stops its runs by itself, whatever the database may think, and begins anew as another
  executor.
"""

import asyncio
from typing import Protocol

from holdfast import _clock
from holdfast._engine.engine import Engine
from holdfast._observe import logger, signal
from holdfast._store import executors
from holdfast._store.connection import Connection
from holdfast._store.executors import ExecutorRow

GRACE = 1.5
"""Heartbeats after which one whose lock has fallen is believed to be dead."""
FENCE_PATIENCE = 0.5
"""Seconds that a fence may be kept waiting by a batch in flight before its session is ended."""


class Tenant(Protocol):
    """Who runs workflows under the lease."""

    def lost(self) -> None:
        """The lease is gone: stop everything, write nothing."""

    def renewed(self) -> None:
        """There is a new lease: there may be work to take."""

    def beaten(self) -> None:
        """A heartbeat has come through: this executor lives."""


class Lease:
    """The heart of a runtime: registers an executor, keeps it alive, and takes over from the dead."""

    def __init__(self, engine: Engine, tenant: Tenant, name: str, app_version: str | None) -> None:
        self.executor: int | None = None
        self._engine = engine
        self._tenant = tenant
        self._name = name
        self._app_version = app_version
        self._held = False
        self._former: list[int] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._look = asyncio.Event()
        self._released = False

    async def connected(self, connection: Connection) -> None:
        """A new session listens. The first becomes an executor; a later one takes its lock back with the next
        beat.
        """
        self._held = False
        if self.executor is None and not self._released:
            await self._register(connection)

    async def beat(self, connection: Connection) -> None:
        """Renews the lease and rings the bell to oneself."""
        engine = self._engine
        sent = _clock.monotonic()
        executor = self.executor
        beat = await executors.beat(
            connection, engine.sql, executor, held=self._held, channel=engine.channel, bell=f"!{engine.id}"
        )
        self._held = beat.locked
        if self._released:
            return
        if executor is None or executor != self.executor or not beat.alive:
            self.lose("another process has fenced it")
            await self._register(connection)
        else:
            self._extend(sent)
            self._tenant.beaten()
            if beat.suspects:
                self._look.set()

    def lost(self) -> None:
        """The session is gone, and its lock with it; the lease still runs."""
        self._held = False

    async def release(self) -> None:
        """Gives everything back: this executor is over, its workflows are free at once."""
        self._released = True
        self._cancel_expiry()
        executor, self.executor = self.executor, None
        self._engine.writer.executor = None
        if executor is not None:
            await self._fence(executor, graceful=True)

    async def recover(self) -> None:
        """Frees the workflows of dead executors: when this process has become an executor, and when a
        heartbeat has been told that another's is missing. Until cancelled.
        """
        while True:
            await self._look.wait()
            self._look.clear()
            for former in tuple(self._former):
                await self._fence(former)
                self._former.remove(former)
            await self._recover_others()

    async def _register(self, connection: Connection) -> None:
        sent = _clock.monotonic()
        settings = self._engine.settings
        self.executor = await executors.register(
            connection, self._engine.sql, self._name, self._app_version, settings.heartbeat, settings.lease
        )
        self._engine.writer.executor = self.executor
        self._held = True
        self._extend(sent)
        self._look.set()
        self._tenant.renewed()
        signal("lease.registered", executor=self.executor)

    def _extend(self, sent: float) -> None:
        """The lease runs from before the renewal was sent."""
        self._cancel_expiry()
        remaining = sent + self._engine.settings.lease - _clock.monotonic()
        self._expiry = asyncio.get_running_loop().call_later(remaining, self._expire)

    def _expire(self) -> None:
        self.lose(f"its heartbeat could not be renewed for {self._engine.settings.lease:g} s")

    def lose(self, why: str) -> None:
        """Stops everything; the next heartbeat that gets through makes this process another executor."""
        self._cancel_expiry()
        executor, self.executor = self.executor, None
        self._engine.writer.executor = None
        if executor is not None:
            logger.warning(
                "executor %d has lost its lease: %s; its workflows go on under a new one", executor, why
            )
            self._former.append(executor)
            self._tenant.lost()
            signal("lease.lost", executor=executor)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _recover_others(self) -> None:
        suspects = {row.id: row for row in await self._list() if not row.locked or _dead(row)}
        dead = [row for row in suspects.values() if _dead(row)]
        for row in dead:
            await self._take_from(row)
        if len(dead) == len(suspects):
            return
        # A lock that has just fallen may be taken again by a process that only lost its connection; with its
        # next heartbeat, which may come more slowly than this one's.
        await asyncio.sleep(self._engine.settings.heartbeat)
        for row in await self._list():
            before = suspects.get(row.id)
            if before is None or row.locked or row.heartbeat_at != before.heartbeat_at:
                continue
            if row.beats_missed >= 1:
                await self._take_from(row)

    async def _take_from(self, row: ExecutorRow) -> None:
        freed = await self._fence(row.id)
        if freed:
            logger.warning(
                "executor %d (%s) is dead; workflows that go on elsewhere: %d", row.id, row.name, freed
            )

    async def _list(self) -> list[ExecutorRow]:
        async def ask(connection: Connection) -> list[ExecutorRow]:
            return await executors.list_executors(connection, self._engine.sql, self.executor)

        return await self._engine.ask(ask, insist=True)

    async def _fence(self, executor: int, *, graceful: bool = False) -> int:
        """Fences an executor; a batch of it that hangs is cut off."""
        sql, channel = self._engine.sql, self._engine.channel

        async def fence(connection: Connection) -> int:
            try:
                async with asyncio.timeout(FENCE_PATIENCE):
                    return await executors.fence(connection, sql, executor, channel, graceful=graceful)
            except TimeoutError:
                await executors.evict(connection, sql, executor)
                return await executors.fence(connection, sql, executor, channel, graceful=graceful)

        return await self._engine.ask(fence, insist=True)


def _dead(row: ExecutorRow) -> bool:
    """Has it been silent for its whole lease, or has it let go of its lock and missed a heartbeat since?"""
    return row.leases_missed > 1 or (not row.locked and row.beats_missed > GRACE)
