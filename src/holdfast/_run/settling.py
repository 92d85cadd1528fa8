"""Which claims have come to something [W13]: a workflow that kills its process in every replay must not be
taken for ever, and one that only waits must survive any number of deaths.

A claim has come to something when the workflow has a new record since (that is seen when it is claimed again,
and costs nothing before), when it was given back in good order, or when a heartbeat has come through after
its replay came to rest. The last is told from here: after a heartbeat, one statement for all runs of which
it is news; when nothing is, none.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from holdfast._engine.engine import Engine
from holdfast._observe import logger, signal
from holdfast._run.leases import Lease
from holdfast._run.run import Run
from holdfast._store import workflows
from holdfast._store.connection import Connection

MOST_SETTLED = 2000
"""Workflows of which one statement tells."""
PATIENCE = 5.0
"""Seconds after which a run that does not come to rest is not waited for any more."""


class Settling:
    """The runs of which nothing is known yet."""

    def __init__(self, engine: Engine, lease: Lease) -> None:
        self._engine = engine
        self._lease = lease
        self._open: dict[str, Run] = {}
        self._rested: list[Run] = []
        self._telling = False
        self._news = asyncio.Event()
        self._told = asyncio.Event()

    def watch(self, run: Run) -> None:
        """A run begins."""
        self._open[run.workflow_id] = run

    def forget(self, run: Run) -> None:
        """A run is over, or all is known of it."""
        if self._open.get(run.workflow_id) is run:
            del self._open[run.workflow_id]
            self._told.set()

    def beaten(self) -> None:
        """A heartbeat has come through: whoever is at rest now has survived its replay."""
        for run in tuple(self._open.values()):
            if run.settled or run.stopped or run.over:
                self.forget(run)
            elif run.turns.quiet:
                self._rest(run)

    async def settled_down(self) -> None:
        """Returns once all that is open now is known to have survived its replay, and the database has been
        told; at the latest when it has not come to rest for long.
        """
        runs = [run for run in self._open.values() if not run.settled]
        for run in runs:
            run.turns.when_replayed(partial(self._rest, run))
        try:
            async with asyncio.timeout(PATIENCE):
                while self._telling or self._rested or any(self._is_open(run) for run in runs):
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            logger.warning("some workflows do not come to rest; one that is suspect is run beside them")

    async def run(self) -> None:
        """Tells the database, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            rested, self._rested = self._rested, []
            self._telling = True
            for start in range(0, len(rested), MOST_SETTLED):
                await self._settle(rested[start : start + MOST_SETTLED])
            self._telling = False
            self._told.set()

    def _rest(self, run: Run) -> None:
        if self._is_open(run):
            self.forget(run)
            run.settled = True
            self._rested.append(run)
            self._news.set()

    def _is_open(self, run: Run) -> bool:
        return self._open.get(run.workflow_id) is run and not (run.settled or run.stopped or run.over)

    async def _settle(self, runs: Sequence[Run]) -> None:
        executor = self._lease.executor
        ids = [run.workflow_id for run in runs]
        epochs = [run.owner.epoch for run in runs]

        async def settle(connection: Connection) -> None:
            if executor is not None and executor == self._lease.executor:
                await workflows.settle_workflows(connection, self._engine.sql, executor, ids, epochs)

        await self._engine.ask(settle, insist=True)
        signal("claims.settled", count=len(ids))
