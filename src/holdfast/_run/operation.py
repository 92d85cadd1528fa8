"""What a durable call is: the only code that decides between replaying and running.

Every durable call of a workflow is an `Operation`: data that says what is asked (kind, name, target), how it
is performed for the first time, and how its recorded answer becomes a value or an exception. `durable()`
takes it through one of two ways, and both end in `conclude()`, so that a first run and a replay can only
differ in where the answer comes from:

- the journal has the answer: wait for its turn, conclude. No I/O, no effect [W2, W3].
- it does not: wait until everything recorded has been replayed, perform, have it committed, pass the
turnstile, conclude.

A call inside a block with a deadline (`holdfast.timeout`, see `blocks`) may end by that: what is recorded
then is not its own outcome, but that it expired.

Cancellation has three meanings here. The workflow was cancelled: the call is recorded as interrupted, so that
a replay is cancelled at the same place [W10]. A sibling or a timeout cancelled it: nothing is recorded, a
replay does the same again. The process shuts down or has lost the workflow: not a cancellation at all, but
WorkflowStopped [W11].
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Token
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

from holdfast import _clock
from holdfast._run.blocks import Block, DeadlinePassed, Expired, current_block, expire
from holdfast._run.context import Branch, Lazy, StepScope, scope
from holdfast._run.run import Run, each_of, has_turn, mismatch
from holdfast._store.commits import Answer, Claim, Claims, Code, Journaled
from holdfast._store.picks import Alternative
from holdfast._store.steps import JournalRow
from holdfast.errors import PayloadCodecError, RecordRejected

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SHORTEST_WAIT = 0.003
"""Seconds: below this, timers of event loops are not to be relied on."""


class Operation(Generic[T_co]):
    """What a durable call asks for. Subclasses hold its arguments as data."""

    __slots__ = ()
    kind: ClassVar[str]
    name: str

    def prepare(self, run: Run, step_id: str) -> None:
        """Raises what is wrong with the arguments, before anything else; the same on a replay."""

    def alternative(self, run: Run, step_id: str) -> Alternative | None:
        """What it waits for, as one of the alternatives of a `first`; None if it cannot be one.

        If it is the one, `conclude` gets the answer, `choice` counting its own topics.
        """
        return None

    def waits(self, run: Run, step_id: str) -> bool:
        """Does it do nothing but wait, so that it may look even if the deadline of a block has passed?"""
        return self.alternative(run, step_id) is not None

    async def perform(self, run: Run, step_id: str) -> Answer:
        """Does it for the first time; returns once the answer is committed."""
        raise NotImplementedError

    async def undo(self, run: Run, step_id: str, answer: Answer) -> None:
        """Gives back what the call took, when its caller is cancelled after it was answered [M8]."""

    def conclude(self, run: Run, answer: Answer) -> T_co:
        """The value of the call, or its exception, from a recorded answer. Pure, but for decoding."""
        raise NotImplementedError

    def failure(self, run: Run, answer: Answer) -> BaseException:
        """The recorded error of this call, rebuilt [W6]."""
        assert answer.payload is not None, "an error is recorded with its description"
        engine = run.executor.engine
        return engine.codec.decode_error(
            answer.payload, run.context(answer, "error", self.name), engine.errors
        )


class Wait(Lazy, Coroutine[Any, Any, T_co], Generic[T_co]):
    """A durable call, not yet begun: await it, give it to `asyncio.gather`, to a task group or to
    `holdfast.first`.

    Its place in the workflow is fixed when it is made, not when it is awaited. Dropping one does nothing.
    """

    __slots__ = ("__weakref__", "_begin", "_coroutine", "operation")

    def __init__(
        self, begin: Callable[[], Coroutine[Any, Any, T_co]], operation: Operation[T_co] | None = None
    ) -> None:
        self._begin: Callable[[], Coroutine[Any, Any, T_co]] | None = begin
        self._coroutine: Coroutine[Any, Any, T_co] | None = None
        self.operation: Operation[T_co] | None = operation

    def _started(self) -> Coroutine[Any, Any, T_co]:
        if self._coroutine is None:
            if self._begin is None:
                raise RuntimeError("this durable call was closed, or handed over, before it was awaited")
            self._coroutine = self._begin()
            self._begin = None
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, T_co]:
        if self._coroutine is not None:
            raise RuntimeError("this durable call has been awaited already; make it again to call it again")
        return self._started().__await__()

    def send(self, value: Any, /) -> Any:  # noqa: ANN401 - the protocol of coroutines
        return self._started().send(value)

    def throw(self, *error: Any) -> Any:  # noqa: ANN401 - the protocol of coroutines
        return self._started().throw(*error)

    def close(self) -> None:
        self._begin = None
        if self._coroutine is not None:
            self._coroutine.close()

    def hand_over(self, branch: Branch) -> tuple[str, Operation[T_co]]:
        """Gives the call, with its step id, to one that makes it a part of itself; it cannot be awaited then.

        Raises:
            RuntimeError: if it has been awaited or closed.
            TypeError: if it is no durable call of this workflow's code.
        """
        begin = self._use()
        if not isinstance(begin, _Begin) or begin.run is not branch.run:
            raise TypeError("this durable call was not made by the code of this workflow")
        return begin.step_id, begin.operation

    def _use(self) -> Callable[[], Coroutine[Any, Any, T_co]]:
        if self._coroutine is not None or self._begin is None:
            raise RuntimeError("this durable call has been awaited or used already; make it again")
        begin, self._begin = self._begin, None
        return begin

    def __repr__(self) -> str:
        if self.operation is None:
            return "<durable call>"
        return f"<durable {self.operation.kind} {self.operation.name!r}>"


class _Begin:
    """Begins an operation under the step id that it was given when it was made."""

    __slots__ = ("operation", "run", "step_id")

    def __init__(self, run: Run, step_id: str, operation: Operation[Any]) -> None:
        self.run = run
        self.step_id = step_id
        self.operation = operation

    def __call__(self) -> Coroutine[Any, Any, Any]:
        return durable(self.run, self.step_id, self.operation)


def call(branch: Branch, operation: Operation[T]) -> Wait[T]:
    """Makes a durable call at this place of the workflow."""
    return Wait(_Begin(branch.run, branch.next_step_id(), operation), operation)


async def durable(run: Run, step_id: str, operation: Operation[T]) -> T:
    """Replays an operation or performs it; see the module. The call of an item of `each` waits for no turn.

    Raises:
        WorkflowStopped: if the process shuts down or has lost the workflow [W11], or its payload codec fails
        [K3].
        NondeterminismError: if the journal knows another call under this id [W5].
    """
    try:
        if run.journal:
            record = run.journal.get(step_id)
            if record is not None:
                check_match(run, step_id, operation.kind, operation.name)
                if record.finished:
                    if has_turn(step_id):
                        await _take_turn(run, step_id, operation, record)
                        run.moment = None
                    if record.outcome == Code.INTERRUPTED:
                        await _interrupt_again(run)
                    if record.outcome == Code.EXPIRED:
                        raise _expire_again(run, record, operation)
                    return operation.conclude(run, _answer(record))
            elif run.unmade and step_id in run.unmade:
                _check_no_items(run, step_id, operation)
        operation.prepare(run, step_id)
        answer = await _perform(run, step_id, operation)
        if answer.code is Code.EXPIRED:
            if not has_turn(step_id):
                raise Expired  # the block hears of it from the batch, in a replay too
            raise expire(answer.choice) or asyncio.CancelledError
        return operation.conclude(run, answer)
    except PayloadCodecError as error:
        raise run.park_unread(error) from error


async def _perform(run: Run, step_id: str, operation: Operation[Any]) -> Answer:
    task = asyncio.current_task()
    run.outstanding[step_id] = task
    run.turns.enter(task)
    answer: Answer | None = None
    try:
        if run.turns.replaying:
            await _in_turn(run, run.turns.hold())
        run.check()
        # Tasks and timers that are made in there are the library's, not the workflow's.
        here = scope.set(None)
        try:
            block = current_block(run)
            if block is not None:
                await block.admit(waits=operation.waits(run, step_id))
            answer = await operation.perform(run, step_id)
            if answer.code is Code.CANCELLED and not run.cancel_asked:
                await run.executor.hear_cancelling(run)
        except RecordRejected as error:
            answer = await _record_rejection(run, step_id, operation, error)
        except DeadlinePassed as passed:
            answer = await _record_expiry(run, step_id, operation, passed.depth)
        finally:
            _back_to(here)
        run.settled = True  # a new record: the claim of this workflow has come to something [W13]
        run.turns.exit(task)  # if it was cancelled, it was not for long
        if run.turns.alone or not has_turn(step_id):
            run.check()
        else:
            await _in_turn(run, run.turns.go_on(step_id))
        run.moment = None
    except asyncio.CancelledError:
        run.turns.forget(step_id)
        run.check()
        if answer is not None:
            await operation.undo(run, step_id, answer)
        await _record_interruption(run, step_id, operation)
        await _step_back(run, task)
        await _record_interruption(run, step_id, operation)
        raise
    finally:
        del run.outstanding[step_id]
        run.turns.exit(task)
    return answer


def _back_to(here: Token[Branch | StepScope | None]) -> None:
    try:
        scope.reset(here)
    except ValueError:
        pass  # a coroutine that nobody finished, closed in another context: nothing runs there any more


async def _record_interruption(run: Run, step_id: str, operation: Operation[Any]) -> None:
    """If the workflow is being cancelled: so that a replay is cancelled at the same place [W10]. A second
    cancellation must not withdraw it.
    """
    if run.interrupted is None or step_id not in run.interrupted:
        return
    run.interrupted.discard(step_id)
    claimed = Claim(step_id=step_id, kind=operation.kind, name=operation.name, given=Code.INTERRUPTED)
    await run.insist(Claims(owner=run.owner, claims=(claimed,)))


async def _record_expiry(run: Run, step_id: str, operation: Operation[Any], depth: int) -> Answer:
    """So that a replay ends at the same place; what the call may have recorded, its caller has not seen."""
    claimed = Claim(
        step_id=step_id, kind=operation.kind, name=operation.name, given=Code.EXPIRED, choice=depth
    )
    await run.commit(Claims(owner=run.owner, claims=(claimed,)))
    return Answer(Code.EXPIRED, choice=depth)


def _expire_again(run: Run, record: JournalRow, operation: Operation[Any]) -> BaseException:
    found = expire(record.choice)
    if found is None:
        error = mismatch(run, record, f"{operation.kind} {operation.name!r} in no such block")
        run.park(error)
        return error
    return found


async def _record_rejection(
    run: Run, step_id: str, operation: Operation[Any], error: RecordRejected
) -> Answer:
    """A record that the database refuses is an outcome like any other: recorded as the error of its call."""
    output = run.executor.engine.codec.encode_error(
        error, run.executor.engine.context(run.workflow_id, "error", operation.name)
    )
    await run.commit(
        Journaled(
            owner=run.owner,
            step_id=step_id,
            kind=operation.kind,
            name=operation.name,
            outcome=Code.ERROR,
            output=output,
        )
    )
    return Answer(Code.ERROR, output)


async def _take_turn(run: Run, step_id: str, operation: Operation[Any], record: JournalRow) -> None:
    """A recorded call waits for its turn; if it is cancelled, for the turn of those. What it took the process
    died before it could give back.
    """
    try:
        await _in_turn(run, run.turns.replay(step_id))
    except asyncio.CancelledError:
        run.turns.about_to_leave(asyncio.current_task())
        await operation.undo(run, step_id, _answer(record))
        await _leave(run)
        raise


async def _interrupt_again(run: Run) -> NoReturn:
    """The workflow was being cancelled when this call was interrupted, and is again."""
    run.interrupt_again()
    try:
        await asyncio.sleep(0)  # where the cancellation is delivered, if this is the first such call
    except asyncio.CancelledError:
        run.check()
    await _leave(run)
    raise asyncio.CancelledError


async def _leave(run: Run) -> None:
    """A cancelled call of a replay leaves in its turn."""
    task = asyncio.current_task()
    await _step_back(run, task)
    run.turns.exit(task)


async def _step_back(run: Run, task: "asyncio.Task[Any] | None") -> None:
    """Waits until a cancellation may reach the workflow's code."""
    try:
        await run.turns.step_back(task)
    except asyncio.CancelledError:
        pass  # one more; the caller raises the first
    run.check()


async def _in_turn(run: Run, turn: Coroutine[Any, Any, None]) -> None:
    """Waits for a turn; being stopped while waiting is not a cancellation."""
    try:
        await turn
    except asyncio.CancelledError:
        run.check()
        raise
    run.check()


def check_match(run: Run, step_id: str, kind: str, name: str) -> None:
    """Is the journal's call of this id, if there is one, of this kind and name?

    Raises:
        NondeterminismError: if not; the workflow is parked [W5].
    """
    record = run.journal.get(step_id)
    if record is not None and (record.kind != kind or record.name != name):
        error = mismatch(run, record, f"{kind} {name!r}")
        run.park(error)
        raise error
    run.call_made(step_id)


def _check_no_items(run: Run, step_id: str, operation: Operation[Any]) -> None:
    """Here an `each` has begun items, and has not been made: the code makes another call."""
    item = next(row for row in run.journal.values() if each_of(row.step_id) == step_id)
    error = mismatch(run, item, f"{operation.kind} {operation.name!r}")
    run.park(error)
    raise error


def _answer(record: JournalRow) -> Answer:
    return Answer(Code(record.outcome or 0), record.output, record.target, None, record.choice, record.origin)


async def claim(run: Run, claimed: Claim, keys: tuple[str, ...]) -> Answer:
    """Performs a call that waits until the database has something for it, or its recorded deadline has
    passed.
    """
    due: float | None = None

    async def look() -> Answer | None:
        nonlocal due
        (answer,) = await run.commit(Claims(owner=run.owner, claims=(claimed,)))
        if answer.code is Code.WAIT:
            due = due_of(answer)
            return None
        return answer

    return await wait(run, keys, look, lambda: due)


Look = Callable[[], Awaitable[Answer | None]]


def wait(
    run: Run, keys: Sequence[str], look: Look, due: Callable[[], float | None]
) -> Coroutine[Any, Any, Answer]:
    """Waits until a look has an answer. `due`: when to look again without being woken.

    Raises:
        DeadlinePassed: if the deadline of a block passed before there was one.
    """
    # Ten thousand workflows may wait here: without a block there is no frame of this room's between.
    block = current_block(run)
    if block is None:
        # It always has an answer: the database decides when such a wait is over.
        return cast("Coroutine[Any, Any, Answer]", run.executor.waiters.until(keys, look, deadline=due))
    return _wait_inside(block, keys, look, due)


async def _wait_inside(
    block: Block, keys: Sequence[str], look: Look, due: Callable[[], float | None]
) -> Answer:
    async def look_inside() -> Answer | None:
        found = await look()
        if found is None:
            await block.ask()
        return found

    def end() -> float | None:
        own, first = due(), block.first_due
        return first if own is None else own if first is None else min(own, first)

    answer = await block.run.executor.waiters.until(keys, look_inside, deadline=end)
    if answer is None:
        raise DeadlinePassed(block)
    return answer


def due_of(answer: Answer) -> float | None:
    """When to look again without being woken, from the seconds that the database says are left."""
    return None if answer.amount is None else _clock.monotonic() + max(answer.amount, SHORTEST_WAIT)
