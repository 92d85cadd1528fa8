"""How workflows come to this process: claimed when a bell says that there are some, their journals read.

New ones and those of the dead are looked for under one bell, those that other executors have parked under
another [W5]: they may lie there for long, and must not be in the way of every claim. Those that have been
claimed twice in vain are suspect: perhaps they take their processes down [W13]. They are taken one by one,
each when all that began before is known to have survived its replay: so whoever is innocent of the death of
its process is not claimed in vain with the guilty again and again.

No claim waits for a lock: what somebody has locked and left as it was rings no bell, and is looked for again
a little later.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol, get_args

from holdfast import _clock, _keys
from holdfast._backoff import Backoff
from holdfast._engine.engine import Engine
from holdfast._observe import logger, signal
from holdfast._run.leases import Lease
from holdfast._run.registry import Registry
from holdfast._store import steps, workflows
from holdfast._store.connection import Connection
from holdfast._store.steps import JournalRow
from holdfast._store.workflows import Claim, Claimed
from holdfast.types import Status

MOST_CLAIMED = 500
"""Workflows taken in one claim."""
MOST_JOURNALS = 100
"""Journals read in one query; they may be large."""

NOTHING = Claim([], held=False)

Kind = Literal["work", "parked", "suspect"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Taker(Protocol):
    """Who runs what is claimed."""

    @property
    def closing(self) -> bool:
        """Is nothing taken any more?"""

    def busy_with(self) -> list[str]:
        """All that it runs, or has not yet let go of."""

    async def settled_down(self) -> None:
        """Returns once what runs now is known to have survived its replay, or does not say so for long."""

    def begin(self, found: Claimed, recorded: Sequence[JournalRow]) -> None:
        """Runs a workflow that has been claimed."""


class Held:
    """When to look again for what somebody has locked: soon, and less often the longer it lasts."""

    def __init__(self) -> None:
        self._pauses = Backoff(initial=0.02, maximum=1.0)
        self._again: float | None = None

    def seen(self, held: bool) -> None:
        """A claim has found something that is free and locked, or has not."""
        if held:
            self._again = _clock.monotonic() + self._pauses.next()
        else:
            self._again = None
            self._pauses.reset()

    def again(self) -> float | None:
        """The moment of the next look, if one is due without a bell."""
        return self._again


class Claiming:
    """Claims for one executor; each `dispatch` is a task of its group."""

    def __init__(self, engine: Engine, registry: Registry, lease: Lease, taker: Taker) -> None:
        self._engine = engine
        self._lease = lease
        self._taker = taker
        self._names = [definition.name for definition in registry]
        self._timeouts = [definition.timeout for definition in registry]
        self._recoveries = [definition.max_recoveries for definition in registry]
        self._work_key = _keys.wake_key("executor", engine.id)
        self._claims = 0
        self._unsure = False
        """Has a reply been lost, and with it workflows been taken that nobody runs?"""
        # Claims are numbered, and one that comes after a later one takes nothing; and what has been claimed
        # must have begun before anybody asks what runs.
        self._taking = asyncio.Lock()

    async def dispatch(self, started: asyncio.Event, kind: Kind) -> None:
        """Takes workflows of a kind until cancelled."""
        await started.wait()
        keys = [self._work_key, *(_keys.wake_key(kind, name) for name in self._names)]
        while True:
            held = Held()
            await self._engine.waiters.until(keys, partial(self._take, kind, held), deadline=held.again)

    async def _take(self, kind: Kind, held: Held) -> bool | None:
        """Claims and begins; None if there was nothing to take."""
        if kind == "suspect":
            await self._taker.settled_down()
        async with self._taking:
            claim = await self._claim(kind)
            held.seen(claim.held)
            if not claim.found:
                return None
            await self._begin(claim.found)
            return True

    async def _claim(self, kind: Kind) -> Claim:
        executor = self._lease.executor
        if executor is None or self._taker.closing:
            return NOTHING
        most = 1 if kind == "suspect" else MOST_CLAIMED

        async def claim(connection: Connection) -> Claim:
            nonlocal most
            if executor != self._lease.executor:
                return NOTHING
            self._claims += 1
            unsure, self._unsure = self._unsure, True
            asked, most = most, max(most // 2, 1)  # perhaps it was too much for the time there is
            made = await workflows.claim_workflows(
                connection,
                self._engine.sql,
                executor,
                self._claims,
                self._names,
                self._timeouts,
                self._recoveries,
                asked,
                self._taker.busy_with() if unsure else None,
                kind=kind,
                channel=self._engine.channel,
            )
            self._unsure = unsure and (made.held or bool(made.found))
            return made

        claimed = await self._engine.ask(claim, insist=True)
        # What was taken by an executor that is no more is freed with it.
        return claimed if executor == self._lease.executor else NOTHING

    async def _begin(self, claimed: Sequence[Claimed]) -> None:
        """Runs what has just been taken; what ran before reads its journal, many of them in one query
        [W3].
        """
        executor = self._lease.executor
        taken = [found for found in claimed if found.status == Status.PENDING.code]
        for found in claimed:
            if found.status != Status.PENDING.code:
                _tell_end(found)
        while taken:
            journals, count = await self._journals(taken)
            if executor != self._lease.executor or self._taker.closing:
                return
            for found in taken[:count]:
                self._taker.begin(found, journals.get(found.id, ()))
            del taken[:count]
        # Who was asked to end between the claim and now was not found here when the bell rang.
        self._engine.waiters.wake(_keys.wake_key("executor", str(executor)))

    async def _journals(self, taken: Sequence[Claimed]) -> tuple[dict[str, list[JournalRow]], int]:
        """The journals of the first of these, and how many they are."""
        count = 2 * MOST_JOURNALS

        async def read(connection: Connection) -> dict[str, list[JournalRow]]:
            nonlocal count
            count = max(count // 2, 1)  # after the first try: perhaps it was too much for the time there is
            ids = [found.id for found in taken[:count] if found.epoch > 1]
            return await steps.list_journals(connection, self._engine.sql, ids)

        if all(found.epoch == 1 for found in taken):
            return {}, len(taken)
        return await self._engine.ask(read, insist=True), count


def _tell_end(found: Claimed) -> None:
    """A workflow was not given out, but has ended: its claims have come to nothing too often [W13]."""
    status = Status.from_code(found.status)
    logger.error(
        "workflow %r is %s: it was claimed %d times, and each time its process died before it got anywhere",
        found.id,
        status.value,
        found.claims,
    )
    signal("workflow.quarantined", workflow_id=found.id, status=status)
