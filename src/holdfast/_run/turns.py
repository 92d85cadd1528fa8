"""In which order a workflow's completed calls go on: one at a time, live as in replay [W4a].

When several branches wait at once, which of them goes on first can decide everything after: who fails first
cancels its siblings, who comes first wins. The journal keeps the order in which calls completed (`seq`).
Live, completed calls pass here in that order; in a replay, recorded calls are released in that order,
whenever they are made. In both, the next one goes on only when the workflow has come to rest: every task of
it waits for something that has not happened yet. So what one completion sets off has run its course before
the next completion is seen, and a replay sees what the first run saw.

A call that the journal does not know is held until everything recorded has been replayed: replay has no
effects [W3].

If the recorded call that is next is not made, while others wait, the code has perhaps changed; or something
that the workflow waits for outside of durable calls has not happened yet. So it waits on, without effects,
and says so.

A workflow with a single task passes without waiting and without a future.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

SETTLE = 3
"""Turns of the loop at rest before a task that has ended counts as noticed by whoever waits for it."""
MISSING_AFTER = 5.0
"""Seconds at rest, with calls waiting, before it is said that a recorded call is not made."""


class Turns:
    """The turnstile of one workflow. `tasks` is the live set of its tasks."""

    __slots__ = (
        "_busy",
        "_checking",
        "_held",
        "_missing",
        "_missing_timer",
        "_passing",
        "_quiet",
        "_recorded",
        "_replayed",
        "_waiting",
        "starting",
        "tasks",
    )

    def __init__(
        self, tasks: "set[asyncio.Future[Any]]", recorded: Iterable[str], missing: Callable[[str], None]
    ) -> None:
        self.tasks: set[asyncio.Future[Any]] = tasks
        # Even an empty deque takes 760 bytes, and most workflows never need one: made when needed.
        found = tuple(recorded)
        self._recorded: deque[str] | None = deque(found) if found else None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._held: deque[asyncio.Future[None]] | None = None
        self._passing: dict[str, asyncio.Future[None] | None] | None = None
        self.starting: int = 0
        """Tasks that are being made: an eager one runs before it is known."""
        self._busy = False
        self._checking = False
        self._quiet = 0
        self._missing = missing
        self._missing_timer: asyncio.TimerHandle | None = None
        self._replayed: list[Callable[[], None]] | None = None

    def when_replayed(self, then: Callable[[], None]) -> None:
        """Calls `then` once everything recorded has gone on and the workflow has come to rest."""
        self._replayed = [*(self._replayed or ()), then]
        self._check_soon()

    @property
    def alone(self) -> bool:
        """Is there a single task, which never waits here?"""
        return len(self.tasks) == 1 and not self.starting and not self._passing

    @property
    def quiet(self) -> bool:
        """Has the workflow begun and come to rest: does every branch wait for something outside of it?"""
        return bool(self.tasks) and not self._checking and at_rest(self.tasks)

    @property
    def replaying(self) -> bool:
        """Is there anything recorded that has not gone on yet, or held for it?"""
        return bool(self._recorded or self._held)

    @property
    def unreplayed(self) -> str | None:
        """The recorded call that is next, if the code has not made it so far."""
        return self._recorded[0] if self._recorded else None

    async def replay(self, step_id: str) -> None:
        """A recorded call waits for its turn: the order in which calls completed."""
        if self.alone and not self._busy and self._recorded and self._recorded[0] == step_id:
            self._recorded.popleft()
            if self._replayed is not None:
                self._check_soon()
            return
        future = self._waiting[step_id] = _future()
        self._check_soon()
        try:
            await future
        except asyncio.CancelledError:
            # It was made, and that is all that replay needs to know of a call whose caller has been
            # cancelled.
            if self._waiting.pop(step_id, None) is not None and self._recorded:
                self._recorded.remove(step_id)
                self._check_soon()
            raise

    async def hold(self) -> None:
        """A call that the journal does not know waits until everything recorded has been replayed."""
        if self._recorded or self._held:
            future = _future()
            if self._held is None:
                self._held = deque()
            self._held.append(future)
            self._check_soon()
            await future

    def reserve(self, step_id: str) -> None:
        """Keeps a call's place among those that go on, before its task has woken."""
        if not self.alone:
            if self._passing is None:
                self._passing = {}
            self._passing.setdefault(step_id, None)

    async def go_on(self, step_id: str) -> None:
        """A completed call goes on when what the one before it has set off has come to rest."""
        if self.alone:
            return
        if not self._busy and (not self._passing or next(iter(self._passing)) == step_id):
            self.forget(step_id)
            self._busy = True
            self._check_soon()
            return
        if self._passing is None:
            self._passing = {}
        future = self._passing[step_id] = _future()
        self._check_soon()
        await future

    def forget(self, step_id: str) -> None:
        """The call goes on, or never will: its place is free."""
        if self._passing is not None and self._passing.pop(step_id, self) is not self:
            self._check_soon()

    def task_ended(self) -> None:
        """A task of the workflow has ended: whoever waits for it needs some turns of the loop to notice."""
        self._quiet = -SETTLE

    def close(self) -> None:
        """The workflow is over: nothing waits here any more."""
        self._recorded = None
        self._disarm()
        for future in (*self._waiting.values(), *(self._held or ()), *(self._passing or {}).values()):
            if future is not None:
                future.cancel()
        self._passing = None

    def _check_soon(self) -> None:
        if not self._checking:
            self._checking = True
            self._quiet = min(self._quiet, 0)
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        """Runs once in every turn of the loop until the workflow is at rest; then lets the next go on."""
        self._quiet = self._quiet + 1 if at_rest(self.tasks) else min(self._quiet, 0)
        if self._quiet <= 0:
            asyncio.get_running_loop().call_soon(self._check)
            return
        self._busy = self._checking = False
        if self._release():
            self._busy = True
            self._check_soon()

    def _release(self) -> bool:
        """Lets the next call go on; False if there is none that could."""
        self._disarm()
        while self._recorded:
            future = self._waiting.pop(self._recorded[0], None)
            if future is None:
                self._arm()
                return False
            self._recorded.popleft()
            if _release_one(future):
                return True
        if self._replayed is not None:
            replayed, self._replayed = self._replayed, None
            for then in replayed:
                then()
        if self._held:
            while self._held:
                _release_one(self._held.popleft())
            return True
        while self._passing:
            step_id, future = next(iter(self._passing.items()))
            if future is None:
                return False  # its task has been woken, and will come
            del self._passing[step_id]
            if _release_one(future):
                return True
        return False

    def _arm(self) -> None:
        """Calls wait, and the recorded call that is next has not been made: perhaps the code no longer makes
        it.
        """
        if self._recorded and (self._held or self._waiting):
            loop = asyncio.get_running_loop()
            self._missing_timer = loop.call_later(MISSING_AFTER, self._missing, self._recorded[0])

    def _disarm(self) -> None:
        if self._missing_timer is not None:
            self._missing_timer.cancel()
            self._missing_timer = None


def at_rest(tasks: "Iterable[asyncio.Future[Any]]") -> bool:
    """Does every task wait for something that has not happened yet?"""
    for task in tasks:
        # asyncio's tasks, in C as in Python, keep here what they wait for; there is no public way to ask.
        waits_for = getattr(task, "_fut_waiter", None)
        if waits_for is None or waits_for.done():
            return False
    return True


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


def _release_one(future: "asyncio.Future[None]") -> bool:
    if future.done():
        return False
    future.set_result(None)
    return True
