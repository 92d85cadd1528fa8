"""Which claims have come to something [W13]: a workflow that kills its process in every replay must not be
taken for ever, and one that only waits must survive any number of deaths.

A claim has come to something when the workflow has a new record since (that is seen when it is claimed again,
and costs nothing before), when it was given back in good order, or when a heartbeat has come through after
its replay came to rest. The last is told from here: after a heartbeat, one statement for all runs of which
it is news; when nothing is, none.
"""

import asyncio
from collections.abc import Sequence

from holdfast._engine.engine import Engine
from holdfast._observe import signal
from holdfast._run.leases import Lease
from holdfast._run.run import Run
from holdfast._store import workflows
from holdfast._store.connection import Connection

MOST_SETTLED = 2000
"""Workflows of which one statement tells."""


class Settling:
    """The runs of which nothing is known yet."""

    def __init__(self, engine: Engine, lease: Lease) -> None:
        self._engine = engine
        self._lease = lease
        self._open: dict[str, Run] = {}
        self._rested: list[Run] = []
        self._news = asyncio.Event()

    def watch(self, run: Run) -> None:
        """A run begins."""
        self._open[run.workflow_id] = run

    def forget(self, run: Run) -> None:
        """A run is over."""
        if self._open.get(run.workflow_id) is run:
            del self._open[run.workflow_id]

    def beaten(self) -> None:
        """A heartbeat has come through: whoever is at rest now has survived its replay."""
        for run in tuple(self._open.values()):
            if run.settled or run.stopped or run.over:
                self.forget(run)
            elif run.turns.quiet:
                run.settled = True
                self.forget(run)
                self._rested.append(run)
        if self._rested:
            self._news.set()

    async def run(self) -> None:
        """Tells the database, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            rested, self._rested = self._rested, []
            for start in range(0, len(rested), MOST_SETTLED):
                await self._settle(rested[start : start + MOST_SETTLED])

    async def _settle(self, runs: Sequence[Run]) -> None:
        executor = self._lease.executor
        ids = [run.workflow_id for run in runs]
        epochs = [run.owner.epoch for run in runs]

        async def settle(connection: Connection) -> None:
            if executor is not None and executor == self._lease.executor:
                await workflows.settle_workflows(connection, self._engine.sql, executor, ids, epochs)

        await self._engine.ask(settle, insist=True)
        signal("claims.settled", count=len(ids))
