"""Where in a workflow the running code is: step ids by births.

A durable call is named by where it is made, not by when: its id is the path of the tasks that were born to
make it, and a counter of the calls on that branch. `3` is the third call of the workflow function; `2.1` the
first call of the second task that it created; `2.1.1` the first call of that task's own first task. Tasks are
numbered when they are created, by a task factory that does nothing outside workflows: creation happens in the
program's order, whatever the latencies, so a replay gives the same ids. (A counter over the whole workflow,
or numbers given at a task's first call, do not.)

Step bodies are outside the workflow's order: tasks that they create belong to the step and give no births.
Nor do tasks that a library makes for itself around a single await: `asyncio.wait_for` makes one in Python
3.11 and none in 3.12. Nor those in which the loop closes an async generator that has been left early: when
that is, depends on the garbage collection. They are outside the workflow: no durable call can be made there.

Tasks hash by the order of their births, not by their address: sets of them (what `asyncio.wait` returns,
those in which task groups keep their children) then have one order, in a replay too.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from types import CodeType, FrameType
from typing import Any, ClassVar, TypeVar

from holdfast._run.run import Run
from holdfast.errors import NotInWorkflow

T = TypeVar("T")


class Branch:
    """One line of calls of a workflow: a task that was born in it, or its function itself."""

    __slots__ = ("_timers", "births", "calls", "prefix", "run")

    def __init__(self, run: Run, prefix: str = "") -> None:
        self.run: Run = run
        self.prefix: str = prefix
        self.births: int = 0
        self.calls: int = 0
        self._timers = 0

    def next_step_id(self) -> str:
        """The id of the next durable call on this branch."""
        self.calls += 1
        self._timers = 0
        return f"{self.prefix}{self.calls}"

    def next_timer_id(self) -> str:
        """The id of the next ordinary timer made on this branch: `3~1` is the first after its third call."""
        self._timers += 1
        return f"{self.prefix}{self.calls}~{self._timers}"

    def born(self) -> "Branch":
        """The branch of the next task created here."""
        self.births += 1
        return Branch(self.run, f"{self.prefix}{self.births}.")


class StepScope:
    """Inside the body of a step: calls that work there are made in the step's name, and are not recorded."""

    __slots__ = ("attempt", "run", "step_id")

    def __init__(self, run: Run, step_id: str, attempt: int) -> None:
        self.run = run
        self.step_id = step_id
        self.attempt = attempt


scope: ContextVar[Branch | StepScope | None] = ContextVar("holdfast_scope", default=None)


def current_branch(verb: str, instead: str) -> Branch:
    """The branch of the running workflow code.

    Raises:
        NotInWorkflow: outside a workflow, and inside a step, where `verb` does not work.
    """
    found = scope.get()
    if isinstance(found, Branch):
        return found
    if isinstance(found, StepScope):
        raise NotInWorkflow(f"{verb} does not work inside a step; call it from the workflow function")
    raise NotInWorkflow(f"{verb} works inside a running workflow; {instead}")


def current_scope(verb: str, instead: str) -> Branch | StepScope:
    """Where the running code is, in a workflow or in a step of one.

    Raises:
        NotInWorkflow: outside both.
    """
    found = scope.get()
    if found is None:
        raise NotInWorkflow(f"{verb} works inside a running workflow or a step of it; {instead}")
    return found


class BornTask(asyncio.Task[T]):
    """A task of a workflow, known by its number: it hashes alike in a replay."""

    __slots__ = ("_number",)

    def __init__(self, coro: Coroutine[Any, Any, T], number: int, **options: Any) -> None:  # noqa: ANN401
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


def spawn(
    run: Run, coroutine: Coroutine[Any, Any, T], name: str, *, has_turns: bool = False
) -> "asyncio.Task[T]":
    """Makes a task of the library's own in a workflow: it shares the fate of the run and gives no births."""
    context = copy_context()
    context.run(scope.set, None)
    run.turns.starting += 1
    try:
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=context)
        run.adopt(task, has_turns=has_turns)
    finally:
        run.turns.starting -= 1
    return task


class BirthFactory:
    """The task factory: numbers the tasks of workflows, and leaves the making to the factory that was there
    before.
    """

    def __init__(self, previous: Callable[..., Any] | None) -> None:
        self.previous = previous
        self._constructor = _constructor_behind(previous)

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **options: Any,  # noqa: ANN401 - whatever this Python gives to task factories
    ) -> Any:  # noqa: ANN401 - whatever the factory below makes
        context: Context | None = options.get("context")
        parent = scope.get() if context is None else context.get(scope)
        if not isinstance(parent, Branch):
            return self._make(loop, coro, options, None)
        if type(coro) is _CLOSING:
            context = copy_context() if context is None else context.copy()
            context.run(scope.set, None)
            return self._make(loop, coro, {**options, "context": context}, None)
        maker = _library_maker()
        if maker is _AS_COMPLETED and not (isinstance(coro, Lazy) and coro.named):
            coro.close()
            raise NotInWorkflow(
                "asyncio.as_completed takes coroutines and calls of workflows in no particular order, "
                "which no replay could repeat; give it tasks of asyncio.create_task, or use holdfast.each"
            )
        if maker is not _WAIT_FOR:
            context = copy_context() if context is None else context.copy()
            context.run(scope.set, parent.born())
            options["context"] = context
        turns = parent.run.turns
        turns.starting += 1
        try:
            number = None if maker is _WAIT_FOR else parent.run.next_number()
            task = self._make(loop, coro, options, number)
            parent.run.adopt(task)
        finally:
            turns.starting -= 1
        return task

    def _make(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        options: dict[str, Any],
        number: int | None,
    ) -> Any:  # noqa: ANN401 - as above
        if self.previous is None:
            return _construct(asyncio.Task, coro, number, loop=loop, **options)
        if self._constructor is not None:
            if _made_by_anyio():
                return _construct(self._constructor, coro, number, loop=loop, **options)
            if number is not None:
                options.setdefault("eager_start", True)
                return _construct(self._constructor, coro, number, loop=loop, **options)
        context: Context | None = options.pop("context", None)
        if context is None:
            return self.previous(loop, coro, **options)
        # Not every factory takes a context; a task copies the one in which it is made.
        return context.run(partial(self.previous, loop, coro, **options))


def _construct(
    constructor: Callable[..., Any],
    coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    number: int | None,
    **options: Any,  # noqa: ANN401 - those of task factories
) -> Any:  # noqa: ANN401 - a task
    if number is not None and constructor is asyncio.Task:
        return BornTask(coro, number, **options)  # type: ignore[arg-type]
    return constructor(coro, **options)


def _constructor_behind(factory: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """What makes the tasks of an eager factory."""
    eager = getattr(asyncio, "eager_task_factory", None)
    closure = getattr(factory, "__closure__", None)
    if eager is None or closure is None or getattr(factory, "__code__", None) is not eager.__code__:
        return None
    constructor: Callable[..., Any] = closure[0].cell_contents
    return constructor


def _made_by_anyio() -> bool:
    """Is this task made by an anyio task group? Its tasks must not be eager: it looks for the eager factory
    and goes round it, but cannot see it behind ours.
    """
    frame = sys._getframe(3)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _PLUMBING:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "anyio._backends._asyncio"


def _library_maker() -> CodeType | None:
    """The function of asyncio that makes this task for reasons of its own, if it is one that matters."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(7):
        if frame is None:
            return None
        if frame.f_code in _MAKERS:
            return frame.f_code
        if frame.f_globals.get("__name__") not in _PLUMBING:
            return None
        frame = frame.f_back
    return None


class Lazy:
    """A durable call, not yet begun. If it is `named`, it has its step id already, so that the order of its
    birth says nothing.
    """

    __slots__ = ()
    named: ClassVar[bool] = True


async def _generator() -> AsyncGenerator[None, None]:
    yield


def _type_of_closing() -> type:
    closing = _generator().aclose()
    closing.close()
    return type(closing)


_CLOSING = _type_of_closing()
_WAIT_FOR = asyncio.wait_for.__code__
_AS_COMPLETED = getattr(asyncio.as_completed, "__code__", None)
_MAKERS = frozenset({_WAIT_FOR, _AS_COMPLETED})
_PLUMBING = frozenset({"asyncio.tasks", "asyncio.base_events", "asyncio.runners", "uvloop.loop"})


def install_births(loop: asyncio.AbstractEventLoop) -> None:
    """Makes `loop` number the tasks of workflows. Several runtimes on one loop share the factory."""
    factory = loop.get_task_factory()
    if isinstance(factory, BirthFactory):
        _users[factory] = _users.get(factory, 0) + 1
        return
    births = BirthFactory(factory)
    _users[births] = 1
    loop.set_task_factory(births)


def remove_births(loop: asyncio.AbstractEventLoop) -> None:
    """Puts back the factory that was there before, unless somebody has put another on top."""
    factory = loop.get_task_factory()
    if not isinstance(factory, BirthFactory):
        return
    _users[factory] -= 1
    if not _users[factory]:
        del _users[factory]
        loop.set_task_factory(factory.previous)


_users: dict[BirthFactory, int] = {}
