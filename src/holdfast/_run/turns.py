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

A cancelled call leaves by the turnstile too. Live it may have to wait for the reply to a record in flight,
or for the clean-up of a step's body; a replay cancels it at once. So the cancellation reaches the workflow's
code only when everything else is at rest, before the next completion, and if several are cancelled in the
order of their births.

Rest is found without asking every task every time: a task that was seen to wait is left alone until the
future that it waits for is done. anyio cancels again in every turn of the loop; a task that this wakes from
the same wait again and again counts as waiting.

A workflow with a single branch passes without waiting and without a future.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from functools import partial
from typing import Any

SETTLE = 4
"""Turns of the loop in which nobody wakes before the workflow counts as at rest: what a task sets off may
pass through plain futures (those of `gather`, `wait` or a task group) before it reaches another.
"""
MISSING_AFTER = 5.0
"""Seconds at rest, with calls waiting, before it is said that a recorded call is not made."""

Task = asyncio.Future[Any]


class Leave(asyncio.Future[None]):
    """What a cancelled call waits for before it leaves. Further cancellations do not reach it."""

    def cancel(self, msg: object = None) -> bool:
        return False


class Turns:
    """The turnstile of one workflow. `tasks` are all of its tasks, by whether they have turns here;
    `outstanding` are those inside durable calls that are being performed.
    """

    __slots__ = (
        "_again",
        "_awake",
        "_busy",
        "_cancelled",
        "_checking",
        "_closed",
        "_expected",
        "_held",
        "_leaving",
        "_missing",
        "_missing_timer",
        "_passing",
        "_quiet",
        "_recorded",
        "_replayed",
        "_waiting",
        "branches",
        "outstanding",
        "starting",
        "tasks",
    )

    def __init__(
        self,
        tasks: Mapping[Task, bool],
        outstanding: Mapping[str, Task | None],
        recorded: Iterable[str],
        missing: Callable[[str], None],
    ) -> None:
        self.tasks: Mapping[Task, bool] = tasks
        self.outstanding: Mapping[str, Task | None] = outstanding
        # Even an empty deque takes 760 bytes, and most workflows never need one: made when needed.
        found = tuple(recorded)
        self._recorded: deque[str] | None = deque(found) if found else None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._held: deque[asyncio.Future[None]] | None = None
        self._passing: dict[str, asyncio.Future[None] | None] | None = None
        self.branches: int = 0
        self.starting: int = 0
        """Tasks that are being made: an eager one runs before it is known."""
        self._expected: set[str] | None = None
        self._awake: dict[Task, None] | None = None
        self._again: dict[Task, bool] | None = None
        self._cancelled: dict[Task, int] | None = None
        self._leaving: dict[Task, Leave | None] | None = None
        self._closed = False
        self._busy = False
        self._checking = False
        self._quiet = 0
        self._missing = missing
        self._missing_timer: asyncio.TimerHandle | None = None
        self._replayed: list[Callable[[], None]] | None = None

    def join(self, task: Task) -> None:
        """A task of the workflow's code: it moves, and nothing goes on before it rests."""
        self.branches += 1
        if self.branches > 1:
            self._wake(task)
            self._busy = True
            self._check_soon()

    def leave(self, task: Task) -> None:
        """A task has ended: whoever waits for it needs some turns of the loop to notice."""
        self.branches -= 1
        if self._awake is not None:
            self._awake.pop(task, None)
        for known in (self._cancelled, self._again):
            if known is not None:
                known.pop(task, None)
        if self.branches:
            self._busy = True
            self._quiet = 0
            self._check_soon()

    def enter(self, task: Task | None) -> None:
        """A durable call begins. If its task has been cancelled before, that cancellation is past."""
        if isinstance(task, asyncio.Task) and (cancelled := task.cancelling()):
            if self._cancelled is None:
                self._cancelled = {}
            self._cancelled[task] = cancelled
        elif self._cancelled and task is not None:
            self._cancelled.pop(task, None)

    def about_to_leave(self, task: Task | None) -> None:
        """A cancelled call of a replay will step back: nothing goes on before."""
        if task in self.tasks and not self.alone and not self._closed:
            assert task is not None
            self._leaving = self._leaving or {}
            self._leaving.setdefault(task, None)

    async def step_back(self, task: Task | None) -> None:
        """A cancelled call leaves when everything else is at rest."""
        if self.alone or task not in self.tasks or self._closed:
            return
        assert task is not None
        if self._leaving is None:
            self._leaving = {}
        leave = self._leaving[task] = Leave(loop=asyncio.get_running_loop())
        self._busy = True
        self._check_soon()
        await leave

    def let_go(self) -> None:
        """Nobody waits to leave any more: the workflow does not go on here."""
        self._closed = True
        for leave in (self._leaving or {}).values():
            if leave is not None:
                _release_one(leave)

    def exit(self, task: Task | None) -> None:
        """A durable call is left, or has been completed although it was cancelled."""
        if self._leaving is not None and task is not None and self._leaving.pop(task, self) is not self:
            self.enter(task)
            self._wake(task)
            self._check_soon()

    def expect(self, step_id: str) -> None:
        """A recorded call that will be made without the code's doing: it is not missing."""
        self._expected = self._expected or set()
        self._expected.add(step_id)

    def when_replayed(self, then: Callable[[], None]) -> None:
        """Calls `then` once everything recorded has gone on and the workflow has come to rest."""
        self._replayed = [*(self._replayed or ()), then]
        self._check_soon()

    @property
    def alone(self) -> bool:
        """Is there a single branch, which never waits here?"""
        return self.branches == 1 and not self.starting and not self._passing

    @property
    def quiet(self) -> bool:
        """Has the workflow begun and come to rest: does every branch wait for something outside of it?"""
        return bool(self.tasks) and not self._checking and all(map(_rests, self._everybody()))

    @property
    def replaying(self) -> bool:
        """Is there anything recorded that has not gone on yet, or held for it?"""
        return bool(self._recorded or self._held)

    @property
    def unreplayed(self) -> str | None:
        """The recorded call that is next, if the code has not made it so far."""
        return self._recorded[0] if self._recorded else None

    @property
    def unmade(self) -> str | None:
        """The first recorded call that the code has not made so far."""
        made = {*self._waiting, *(self._expected or ())}
        return next((step_id for step_id in self._recorded or () if step_id not in made), None)

    async def replay(self, step_id: str) -> None:
        """A recorded call waits for its turn: the order in which calls completed."""
        if self.alone and not self._busy and self._recorded and self._recorded[0] == step_id:
            self._recorded.popleft()
            if self._replayed is not None or self._held:
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
        if self._is_free(step_id):
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

    def close(self) -> None:
        """The workflow is over: nothing waits here any more."""
        self._recorded = None
        self._disarm()
        self.let_go()
        for future in (*self._waiting.values(), *(self._held or ()), *(self._passing or {}).values()):
            if future is not None:
                future.cancel()
        self._passing = self._awake = self._again = self._cancelled = self._leaving = None

    def _is_free(self, step_id: str) -> bool:
        """May this call go on at once: is nobody awake but its own task, and nobody before it?"""
        if self._busy or (self._passing and next(iter(self._passing)) != step_id):
            return False
        awake = self._awake
        return not awake or (len(awake) == 1 and asyncio.current_task() in awake)

    def _check_soon(self) -> None:
        if not self._checking:
            self._checking = True
            self._quiet = 0
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        """Runs once in every turn of the loop until the workflow is at rest; then lets the next go on."""
        self._quiet = self._quiet + 1 if self._at_rest() else 0
        if self._quiet < SETTLE:
            asyncio.get_running_loop().call_soon(self._check)
            return
        self._checking = False
        if self._leaving:
            self._forget_those_who_stay(self._leaving)
        if self._leaving:
            self._let_leave(self._leaving)
            return
        self._busy = False
        if self._release():
            self._busy = True
            self._check_soon()

    def _at_rest(self) -> bool:
        """Has nobody woken since the last look, and does everybody wait for what has not happened yet?"""
        awake = self._awake if self._awake is not None else self._everybody()
        self._awake = {}
        again = self._again or {}
        inside: set[Task | None] | None = None
        for task in (*awake, *(task for task, woken in again.items() if woken)):
            if self._leaving and self._leaving.get(task):
                continue
            if isinstance(task, asyncio.Task) and task.cancelling():
                inside = set(self.outstanding.values()) if inside is None else inside
                self._note_leaving(task, inside)
            if self._watch(task):
                if task in again:
                    again[task] = False
            elif task in again and _is_cancelled(task):
                again[task] = True
            else:
                self._awake[task] = None
        return not awake and not self._awake

    def _note_leaving(self, task: "asyncio.Task[Any]", inside: set[Task | None]) -> None:
        """Has it been cancelled inside the durable call in which it is? Then it is about to leave that."""
        if task in inside and self._is_cancelling(task):
            self._leaving = self._leaving or {}
            self._leaving.setdefault(task, None)

    def _is_cancelling(self, task: "asyncio.Task[Any]") -> bool:
        """Has it been cancelled since its durable call began?"""
        return task.cancelling() > (self._cancelled or {}).get(task, 0)

    def _forget_those_who_stay(self, leaving: dict[Task, Leave | None]) -> None:
        """The body of a step may end a cancellation itself: that of a timeout of its own."""
        for task, leave in tuple(leaving.items()):
            if leave is None and isinstance(task, asyncio.Task) and not self._is_cancelling(task):
                del leaving[task]

    def _watch(self, task: Task) -> bool:
        """Has it noted when a task wakes that waits? False if it does not wait."""
        waits_for = _waited_for(task)
        if waits_for is None or waits_for.done():
            return False
        waits_for.add_done_callback(partial(self._wake, task))
        return True

    def _everybody(self) -> dict[Task, None]:
        return dict.fromkeys(task for task, has_turns in self.tasks.items() if has_turns)

    def _wake(self, task: Task, waited_for: Task | None = None) -> None:
        """What a task waited for is done."""
        if self._awake is None:
            self._awake = self._everybody()
        if task.done() or (self._leaving and self._leaving.get(task)):
            return
        if self._leaving and task in self._leaving:
            self._check_soon()  # perhaps it stays, and others need not wait for it
        if waited_for is not None and waited_for.cancelled():
            if self._again is None:
                self._again = {}
            if task in self._again:
                self._again[task] = True
                return
            self._again[task] = False
        elif self._again:
            self._again.pop(task, None)
        self._awake[task] = None

    def _let_leave(self, leaving: dict[Task, Leave | None]) -> None:
        """Lets the cancelled go, in the order of their births, if all of them have come so far."""
        if None not in leaving.values():
            for task in self.tasks:
                leave = leaving.get(task)
                if leave is not None:
                    _release_one(leave)

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
        if not self._recorded or (self._expected and self._recorded[0] in self._expected):
            return
        if self._held or self._waiting:
            self._missing_timer = own_timer(MISSING_AFTER, self._missing, self._recorded[0])

    def _disarm(self) -> None:
        if self._missing_timer is not None:
            self._missing_timer.cancel()
            self._missing_timer = None


def _rests(task: Task) -> bool:
    """Does it wait for something that has not happened yet?"""
    waits_for = _waited_for(task)
    return waits_for is not None and not waits_for.done()


def _waited_for(task: Task) -> Task | None:
    # asyncio's tasks, in C as in Python, keep here what they wait for; there is no public way to ask.
    waits_for: Task | None = getattr(task, "_fut_waiter", None)
    return waits_for


def _is_cancelled(task: Task) -> bool:
    waits_for = _waited_for(task)
    return waits_for is not None and waits_for.cancelled()


def own_timer(seconds: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
    """A timer of the library's own, made where workflow code may be running, whose timers are recorded."""
    return Context().run(asyncio.get_running_loop().call_later, seconds, callback, *args)


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


def _release_one(future: "asyncio.Future[None]") -> bool:
    if future.done():
        return False
    future.set_result(None)
    return True
