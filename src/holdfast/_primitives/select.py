"""Select: one durable call that waits for the first of several, and takes nothing of the others.

A first is one row of the journal. Its alternatives are data, decided in the database, where two claims can
never both win; what only this process can decide, the outcome of a step, is offered to the database as one
more of them. Being parts of the first, they have no rows of their own. `recv` on several topics is no matter
of this room.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import copy_context
from datetime import timedelta
from typing import Any, ClassVar, Literal, TypeVar, overload

import msgspec

from holdfast._primitives.mailroom import Place, give_back
from holdfast._primitives.messages import Recv
from holdfast._primitives.recorded import AtHand
from holdfast._primitives.steps import StepCall
from holdfast._primitives.workflows import RunChild
from holdfast._run.blocks import current_block
from holdfast._run.context import Branch, current_branch, scope
from holdfast._run.operation import Operation, Wait, call
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code
from holdfast._store.picks import Alternative, Offer, chosen, took_message
from holdfast.config import seconds_of

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
T = TypeVar("T")
Seconds = float | timedelta | None
Of = Coroutine[Any, Any, T]
"""What may be handed over: a `Wait`. The calls of a handle are one inside a workflow, but not outside."""

INSTEAD = "outside, asyncio.wait does this for what needs not be recorded"
REMEDIES = {
    "first": "give its alternatives to this first",
    "start": "hand over the call of the workflow itself, or the result() of a handle",
    "transaction": "what has committed cannot be withdrawn; await it, or make it a step or a child workflow",
}


@overload
def first(a: Of[A], /, *, timeout: None = None) -> Wait[tuple[Literal[0], A]]: ...
@overload
def first(a: Of[A], /, *, timeout: Seconds) -> Wait[tuple[Literal[0], A] | None]: ...
@overload
def first(
    a: Of[A], b: Of[B], /, *, timeout: None = None
) -> Wait[tuple[Literal[0], A] | tuple[Literal[1], B]]: ...
@overload
def first(
    a: Of[A], b: Of[B], /, *, timeout: Seconds
) -> Wait[tuple[Literal[0], A] | tuple[Literal[1], B] | None]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], /, *, timeout: None = None
) -> Wait[tuple[Literal[0], A] | tuple[Literal[1], B] | tuple[Literal[2], C]]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], /, *, timeout: Seconds
) -> Wait[tuple[Literal[0], A] | tuple[Literal[1], B] | tuple[Literal[2], C] | None]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], d: Of[D], /, *, timeout: None = None
) -> Wait[tuple[Literal[0], A] | tuple[Literal[1], B] | tuple[Literal[2], C] | tuple[Literal[3], D]]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], d: Of[D], /, *, timeout: Seconds
) -> Wait[
    tuple[Literal[0], A] | tuple[Literal[1], B] | tuple[Literal[2], C] | tuple[Literal[3], D] | None
]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], d: Of[D], e: Of[E], /, *, timeout: None = None
) -> Wait[
    tuple[Literal[0], A]
    | tuple[Literal[1], B]
    | tuple[Literal[2], C]
    | tuple[Literal[3], D]
    | tuple[Literal[4], E]
]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], d: Of[D], e: Of[E], /, *, timeout: Seconds
) -> Wait[
    tuple[Literal[0], A]
    | tuple[Literal[1], B]
    | tuple[Literal[2], C]
    | tuple[Literal[3], D]
    | tuple[Literal[4], E]
    | None
]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], d: Of[D], e: Of[E], f: Of[F], /, *, timeout: None = None
) -> Wait[
    tuple[Literal[0], A]
    | tuple[Literal[1], B]
    | tuple[Literal[2], C]
    | tuple[Literal[3], D]
    | tuple[Literal[4], E]
    | tuple[Literal[5], F]
]: ...
@overload
def first(
    a: Of[A], b: Of[B], c: Of[C], d: Of[D], e: Of[E], f: Of[F], /, *, timeout: Seconds
) -> Wait[
    tuple[Literal[0], A]
    | tuple[Literal[1], B]
    | tuple[Literal[2], C]
    | tuple[Literal[3], D]
    | tuple[Literal[4], E]
    | tuple[Literal[5], F]
    | None
]: ...
# Seven at least: else a type checker would be in doubt, and infer Any, where an argument has an Any in it.
@overload
def first(
    a: Of[T],
    b: Of[T],
    c: Of[T],
    d: Of[T],
    e: Of[T],
    f: Of[T],
    g: Of[T],
    /,
    *more: Of[T],
    timeout: None = None,
) -> Wait[tuple[int, T]]: ...
@overload
def first(
    a: Of[T], b: Of[T], c: Of[T], d: Of[T], e: Of[T], f: Of[T], g: Of[T], /, *more: Of[T], timeout: Seconds
) -> Wait[tuple[int, T] | None]: ...
def first(*waits: Of[Any], timeout: Seconds = None) -> Wait[Any]:
    """Waits for the first of several durable calls to finish: its index and its value. Only in a workflow.

    Messages, events, results, sleeps, several topics, calls of child workflows, steps, and the next value of
    a stream or of a watched event (`anext(reader)`, `anext(watch)`) can be waited for.
    The winner is recorded in one commit with what it takes [M4]; the others are withdrawn: they consume
    nothing, leave nobody waiting [M8], and a replay does not touch them [W3]. If several are ready, the one
    that stands first wins. One that ends by failing, or by its own timeout, raises out of the first.

    `timeout` is in seconds, by the database's clock; past it the value is None. Timeouts, those of the
    alternatives too, count from when the first begins to wait, and on through crashes [W9].

    A child is started, and goes on when it loses: only the waiting for it is withdrawn. The body of a step
    begins when nothing is ready at once, is cancelled when the step loses, and is waited for until it has
    ended.

    Raises:
        NotInWorkflow: outside a workflow, or inside a step.
        TypeError: for what is no durable call, or does not wait: send, set, write, start, @transaction.

    Example:
        >>> async def decide(answers: "Topic[str]") -> str:
        ...     match await first(answers.recv(), sleep(3600)):
        ...         case (0, answer):
        ...             return answer
        ...         case _:
        ...             return "nobody answered"
    """
    branch = current_branch("first", INSTEAD)
    return call(branch, First(_hand_over(branch, waits), seconds_of(timeout)))


@overload
def first_of(timeout: None = None, **waits: Of[T]) -> Wait[tuple[str, T]]: ...
@overload
def first_of(timeout: Seconds, **waits: Of[T]) -> Wait[tuple[str, T] | None]: ...
def first_of(timeout: Seconds = None, **waits: Of[Any]) -> Wait[Any]:
    """`first` with names for the alternatives: gives `(name, value)`, or None past the timeout.

    Raises:
        NotInWorkflow, TypeError: as for `first`.

    Example:
        >>> async def decide(answers: "Topic[str]") -> str:
        ...     name, value = await first_of(answer=answers.recv(), late=sleep(3600))
        ...     return name
    """
    branch = current_branch("first_of", INSTEAD)
    return call(branch, First(_hand_over(branch, tuple(waits.values())), seconds_of(timeout), tuple(waits)))


def _hand_over(branch: Branch, waits: Sequence[object]) -> tuple[tuple[str, Operation[Any]], ...]:
    """The alternatives with their step ids, which calls of workflows take here [W4]."""
    if not waits:
        raise TypeError("first needs something to wait for")
    parts = []
    for wait in waits:
        if not isinstance(wait, Wait):
            if isinstance(wait, Coroutine):
                wait.close()
            raise TypeError(
                f"first waits for durable calls, which a {type(wait).__name__} is not: put what it does into "
                "a step; in place of asyncio.sleep use holdfast.sleep"
            )
        step_id, operation = wait.hand_over(branch)
        if operation.alternative(branch.run, step_id) is None:
            remedy = REMEDIES.get(operation.kind, "it does not wait; await it by itself")
            raise TypeError(f"first cannot wait for {operation.kind}: {remedy}")
        parts.append((step_id, operation))
    return tuple(parts)


class First(Operation[Any]):
    """One of several calls, whichever finishes first."""

    __slots__ = ("name", "names", "parts", "timeout")
    kind: ClassVar[str] = "first"

    def __init__(
        self,
        parts: tuple[tuple[str, Operation[Any]], ...],
        timeout: float | None,
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.parts = parts
        self.timeout = timeout
        self.names = names
        quote = msgspec.json.encode
        self.name = " | ".join(f"{part.kind} {quote(part.name).decode()}" for _, part in parts)

    def waits(self, run: Run, step_id: str) -> bool:
        return step_id in run.journal or not any(isinstance(part, RunChild) for _, part in self.parts)

    def prepare(self, run: Run, step_id: str) -> None:
        for part_id, part in self.parts:
            part.prepare(run, part_id)

    async def perform(self, run: Run, step_id: str) -> Answer:
        wanted = self._alternatives(run)
        # Rings when something has happened in this process; no bell of the database's has such a key.
        own_key = f"first {run.workflow_id} {step_id}"
        keys = (*dict.fromkeys(key for alternative in wanted for key in alternative.keys), own_key)
        topics = [topic for found in wanted if found.kind == Recv.kind for topic in found.names]
        with Place(run, step_id, self.kind, self.name, self.timeout, topics, keys, wanted) as place:
            place.offer = self._at_hand()
            bodies = Bodies(run, place, own_key, self.parts)
            if any(isinstance(part, RunChild) for _, part in self.parts):
                with place.held():
                    await self._start_children(run, place)
            try:
                answer = await place.take(bodies.look)
            except BaseException:
                await bodies.aclose()
                raise
            try:
                await bodies.aclose()
            except asyncio.CancelledError:
                await self.undo(run, step_id, answer)
                raise
        return answer

    def _at_hand(self) -> Offer | None:
        """A value that a reader has fetched already is ready from the beginning."""
        found = (index for index, (_, part) in enumerate(self.parts) if isinstance(part, AtHand))
        return next((Offer(index, Code.VALUE) for index in found), None)

    async def _start_children(self, run: Run, place: Place) -> None:
        """Children begin before anything is waited for. The first's own row is the record of having started
        them: without it they are started again, which finds them there.
        """
        for index, (part_id, part) in enumerate(self.parts):
            if isinstance(part, RunChild):
                answer = await part.begin(run, part_id, None)
                if answer.code is not Code.VALUE and place.offer is None:
                    place.offer = Offer(index, answer.code)

    async def undo(self, run: Run, step_id: str, answer: Answer) -> None:
        wanted = self._alternatives(run)
        if took_message(wanted, answer):
            keys = dict.fromkeys(key for found in wanted if found.kind == Recv.kind for key in found.keys)
            await give_back(run, step_id, tuple(keys))

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.choice is None:
            if answer.code is Code.TIMEOUT:
                return None
            raise self.failure(run, answer)
        index, topic = chosen(self._alternatives(run), answer.choice)
        _, part = self.parts[index]
        value = part.conclude(run, msgspec.structs.replace(answer, choice=topic))
        return (index if self.names is None else self.names[index]), value

    def _alternatives(self, run: Run) -> tuple[Alternative, ...]:
        found = (part.alternative(run, part_id) for part_id, part in self.parts)
        return tuple(alternative for alternative in found if alternative is not None)


class Bodies:
    """The bodies of a first's steps, in tasks of their own: begun when nothing was ready at the first look,
    ended when the first ends.
    """

    __slots__ = ("_key", "_parts", "_place", "_run", "_tasks")

    def __init__(self, run: Run, place: Place, key: str, parts: Sequence[tuple[str, Operation[Any]]]) -> None:
        self._run = run
        self._place = place
        self._key = key
        self._parts = parts
        self._tasks: list[asyncio.Task[None]] | None = None

    async def look(self) -> Answer | None:
        """Is there an answer? What the bodies have brought about so far is offered."""
        for task in self._tasks or ():
            if task.done():
                task.result()  # raises what is no outcome of a step: stopped, or cancelled by itself
        answer = await self._place.look()
        if answer is None and self._tasks is None:
            block = current_block(self._run)
            if block is not None:
                await block.begin()
            self._tasks = [
                self._begin(index, part_id, part)
                for index, (part_id, part) in enumerate(self._parts)
                if isinstance(part, StepCall)
            ]
        return answer

    def _begin(self, index: int, step_id: str, part: StepCall) -> "asyncio.Task[None]":
        # Outside of the workflow's order: this task is no birth, and the run does not wait for it to rest.
        context = copy_context()
        context.run(scope.set, None)
        task = asyncio.get_running_loop().create_task(
            self._play(index, step_id, part),
            name=f"step {step_id} of workflow {self._run.workflow_id}",
            context=context,
        )
        task.add_done_callback(lambda _: self._run.executor.waiters.wake(self._key))
        return task

    async def _play(self, index: int, step_id: str, part: StepCall) -> None:
        code, output, attempts = await part.tries(self._run, step_id)
        offer = self._place.offer
        if offer is None or index < offer.index:
            self._place.offer = Offer(index, code, output, attempts)

    async def aclose(self) -> None:
        """Cancels the bodies and waits until they have ended, through any cancelling of the caller."""
        running = {task for task in self._tasks or () if not task.done()}
        for task in running:
            task.cancel()
        cancelled = False
        while running:
            try:
                _, running = await asyncio.wait(running)
            except asyncio.CancelledError:
                cancelled = True
                running = {task for task in running if not task.done()}
        for task in self._tasks or ():
            if not task.cancelled():
                task.exception()  # nobody waits for it any more: nobody needs to be told
        if cancelled:
            raise asyncio.CancelledError
