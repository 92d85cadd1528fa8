"""Ordinary timers in workflow code: `asyncio.sleep`, `asyncio.timeout`, `asyncio.wait_for`, the timeouts of
`asyncio.wait` and `asyncio.as_completed`, anyio's `move_on_after` and `fail_after`, `loop.call_later`.

Such a timer races with durable calls, and a replay would run another race: it has all the answers at once,
or it is slow. So a timer that workflow code has made is a durable call from the moment in which its time has
come: that it fired is recorded, and it passes the turnstile before its callback runs. A replay fires it at
the same place among the other completions, and not before; asyncio's own at once, without waiting again for
what has been waited for. One that is cancelled in time leaves nothing behind, and one that did not fire
before the crash counts anew: a deadline that is to outlast the process is `holdfast.timeout`, or the
`timeout=` of a call. Timeouts whose time is past when they begin are timers like others here.

The timers of step bodies, and those that the library makes inside durable calls, are left alone.
"""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import ClassVar
from weakref import WeakKeyDictionary

from anyio._backends import _asyncio as anyio_asyncio

from holdfast._run.context import Branch, scope, spawn
from holdfast._run.operation import Operation, durable
from holdfast._run.run import Run
from holdfast._store.commits import DONE, Answer, Journaled

Callback = Callable[..., object]
Make = Callable[..., asyncio.TimerHandle]


class PlainTimer:
    """A timer of workflow code, in the place of an `asyncio.TimerHandle`."""

    __slots__ = (
        "_args",
        "_callback",
        "_context",
        "_factory",
        "_handle",
        "_run",
        "_step_id",
        "_when",
        "withdrawn",
    )

    def __init__(
        self,
        factory: "TimerFactory",
        branch: Branch,
        when: float,
        callback: Callback,
        args: tuple[object, ...],
        context: Context | None,
    ) -> None:
        self.withdrawn: bool = False
        self._factory = factory
        self._run: Run = branch.run
        self._step_id: str = branch.next_timer_id()
        self._when = when
        self._callback: Callback | None = callback
        self._args = args
        self._context = context or copy_context()
        self._handle: asyncio.TimerHandle | None = None
        record = self._run.journal.get(self._step_id)
        if record is not None and _needs_no_clock(callback):
            self._fire()
            return
        if record is not None:
            self._run.turns.expect(self._step_id)
        self._arm()

    def when(self) -> float:
        """When it is due, by the loop's clock."""
        return self._when

    def cancelled(self) -> bool:
        """Has it been cancelled?"""
        return self.withdrawn

    def cancel(self) -> None:
        """Its callback does not run. If a record says that it fired all the same, that has its turn and does
        nothing.
        """
        if self.withdrawn:
            return
        self.withdrawn = True
        self._callback, self._args = None, ()
        if self._handle is not None:
            self._handle.cancel()
            if self._step_id in self._run.journal:
                self._fire()

    def _arm(self) -> None:
        # One of the loop's two calls the other: in an empty context neither takes it for another one.
        self._handle = self._factory.make_at(self._when, self._due, context=Context())

    def _due(self) -> None:
        """uvloop's timers may be some tenths of a millisecond early; anyio takes a look at the clock."""
        if self._factory.real_time() < self._when:
            self._arm()
        else:
            self._fire()

    def _fire(self) -> None:
        """Its time has come; or a replay knows that it came."""
        self._handle = None
        if self._run.over or self._run.stopped:
            self._call()
        else:
            name = f"timer {self._step_id} of workflow {self._run.workflow_id}"
            spawn(self._run, self._take_turn(), name, has_turns=True)

    async def _take_turn(self) -> None:
        await durable(self._run, self._step_id, Elapse(self))
        self._call()

    def _call(self) -> None:
        callback, self._callback = self._callback, None
        if callback is None:
            return
        try:
            with self._factory.firing():
                self._context.run(callback, *self._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # what a loop does with what its callbacks raise
            self._factory.loop.call_exception_handler(
                {"message": f"Exception in callback of {self!r}", "exception": error, "handle": self}
            )

    def __repr__(self) -> str:
        return f"<timer {self._step_id} of workflow {self._run.workflow_id!r}>"


class Elapse(Operation[None]):
    """A timer of workflow code has fired."""

    __slots__ = ("timer",)
    kind: ClassVar[str] = "timer"
    name: ClassVar[str] = "asyncio"  # type: ignore[misc]

    def __init__(self, timer: PlainTimer) -> None:
        self.timer = timer

    async def perform(self, run: Run, step_id: str) -> Answer:
        if not self.timer.withdrawn:
            await run.commit(Journaled(owner=run.owner, step_id=step_id, kind=self.kind, name=self.name))
        return DONE

    def conclude(self, run: Run, answer: Answer) -> None:
        """Nothing but that it fired."""


def _needs_no_clock(callback: Callback) -> bool:
    """asyncio's own callbacks do what they do; others, like anyio's, look first whether it is really time."""
    return getattr(callback, "__module__", None) in _OWN_CALLBACKS


_OWN_CALLBACKS = frozenset({"asyncio.futures", "asyncio.tasks", "asyncio.timeouts", "_asyncio"})


class TimerFactory:
    """Stands in for `call_at`, `call_later` and `time` of one loop; behind them is what was there before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.users = 0
        self._firing = False
        self._shadowed = {name: vars(loop).get(name) for name in ("call_at", "call_later", "time")}
        self.real_time: Callable[[], float] = loop.time
        self.make_at: Make = loop.call_at
        self._make_later: Make = loop.call_later

    def install(self) -> None:
        """Takes their places."""
        vars(self.loop).update(call_at=self.call_at, call_later=self.call_later, time=self.time)

    def remove(self) -> None:
        """Puts back what was there before, unless somebody has put another on top."""
        for name, before in self._shadowed.items():
            if vars(self.loop).get(name) == getattr(self, name):
                if before is None:
                    delattr(self.loop, name)
                else:
                    setattr(self.loop, name, before)

    def call_at(
        self, when: float, callback: Callback, *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle | PlainTimer:
        """As that of the loop; a timer made by workflow code is one of the workflow's calls."""
        branch = _branch(context)
        if branch is None:
            return self.make_at(when, callback, *args, context=context)
        return PlainTimer(self, branch, when, callback, args, context)

    def call_later(
        self, delay: float, callback: Callback, *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle | PlainTimer:
        """As that of the loop; likewise."""
        branch = _branch(context)
        if branch is None:
            return self._make_later(delay, callback, *args, context=context)
        when = self.real_time() + delay
        return PlainTimer(self, branch, when, callback, args, context)

    def time(self) -> float:
        """As that of the loop. But a timeout that asks whether it is over before it has begun is told that it
        is not, unless it was made so: that is for its timer to say, whose firing is recorded.
        """
        now = self.real_time()
        branch = scope.get()
        if self._firing or not isinstance(branch, Branch):
            return now
        asker = sys._getframe(1).f_code
        if asker not in _MAKING and asker not in _BEGINNING:
            return now
        if branch.run.moment is None:
            branch.run.moment = now
        return branch.run.moment if asker in _MAKING else Moment(branch.run.moment)

    @contextmanager
    def firing(self) -> Iterator[None]:
        """A timer of a workflow has fired: whoever looks at the clock now sees what it shows."""
        self._firing = True
        try:
            yield
        finally:
            self._firing = False


class Moment(float):
    """The time between two durable calls, for a timeout that begins: past are only deadlines that are now."""

    def __ge__(self, deadline: float) -> bool:
        return deadline in (float(self), -math.inf)


_MAKING = frozenset({asyncio.timeout.__code__, anyio_asyncio.AsyncIOBackend.current_time.__code__})
_BEGINNING = frozenset({asyncio.Timeout.reschedule.__code__, anyio_asyncio.CancelScope._timeout.__code__})


def _branch(context: Context | None) -> Branch | None:
    """The branch of a workflow on which a timer is made."""
    found = scope.get() if context is None else context.get(scope)
    if isinstance(found, Branch) and not (found.run.over or found.run.stopped):
        return found
    return None


def install_timers(loop: asyncio.AbstractEventLoop) -> None:
    """Makes `loop` tell the timers of workflow code from others. Several runtimes on one loop share this."""
    factory = _factories.get(loop)
    if factory is None:
        factory = _factories[loop] = TimerFactory(loop)
        factory.install()
    factory.users += 1


def remove_timers(loop: asyncio.AbstractEventLoop) -> None:
    """The last runtime on a loop has ended."""
    factory = _factories[loop]
    factory.users -= 1
    if not factory.users:
        del _factories[loop]
        factory.remove()


_factories: WeakKeyDictionary[asyncio.AbstractEventLoop, TimerFactory] = WeakKeyDictionary()
