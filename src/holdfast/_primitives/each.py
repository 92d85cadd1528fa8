"""Fan-out: one step or workflow for every item of an iterable, a bounded number at once, in completion order.

The call of item `i` is the durable call `N#i`, where `N` is the step id that `each` took; a child's id is
`<parent>/N#i`. These calls complete when they complete and wait for no turn. What the workflow's code sees
of them is recorded apart: the iterator's own durable call, of kind `each`, records which items have completed
and are handed out now, in which order. So ten thousand items cost little beside their own records, and a
replay hands out the same outcomes in the same order.

Items are taken from the iterable where the workflow's code sees it too: at the first step of the iteration,
and as many again as a batch has handed out. No more than `limit` are begun and not handed out, and there is
one task for each of those that run.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

import msgspec

from holdfast._primitives.made import Made
from holdfast._primitives.steps import Step, cancellations
from holdfast._primitives.workflows import RunChild, Workflow, WorkflowRef
from holdfast._run.blocks import Expired, check_passed, in_time
from holdfast._run.context import current_branch, spawn
from holdfast._run.operation import Operation, Wait, call, durable
from holdfast._run.run import Run, item_id
from holdfast._store.commits import Code
from holdfast.errors import ConfigurationError, NondeterminismError, RemoteError, WaitTimeout

I = TypeVar("I")  # noqa: E741 - of item
R = TypeVar("R")

MOST_AT_ONCE = 1000
"""Items begun and not handed out when no `limit` is given."""
MOST_IN_BATCH = 1000
"""Items handed out by one record."""


class Outcome(msgspec.Struct, Generic[I, R], frozen=True, kw_only=True):
    """What became of one item. `error` is what awaiting the call would have raised; then `value` is None."""

    item: I
    value: R
    error: Exception | None = None

    def __repr__(self) -> str:
        return f"<outcome: {'a value' if self.error is None else type(self.error).__name__}>"


def each(what: Callable[[I], Wait[R]], items: Iterable[I], /, *, limit: int | None = None) -> "Each[I, R]":
    """Calls a step, a transaction or a workflow with every item, and gives outcomes as they complete.

    `limit` is how many items may be under way: begun, and not yet handed to the loop; 1,000 if it is None. An
    error of an item is its outcome and stops nothing. `items` may be any iterable, without an end too: it is
    read as places get free, and like all workflow code it must give the same again in a replay. An error of
    the iterable itself is raised once everything before it has been handed out.

    Leaving the loop early does not cancel what has begun: it runs on, recorded, until the workflow ends, as
    tasks do for which nobody waits; `aclose()` cancels it. What the deadline of a block (`holdfast.timeout`)
    has ended is handed out, with a `WaitTimeout`, only to who iterates on outside of that block. When the
    workflow is cancelled, what runs is cancelled with it [W10].

    Raises:
        TypeError: if `what` is something else, or could not be called with one argument.
        ConfigurationError: if `limit` is less than 1.
        NotInWorkflow: outside a workflow, and in a step.

    Example:
        >>> async def total(fetch: Step[[str], int], urls: list[str]) -> int:
        ...     return sum([found.value async for found in each(fetch, urls, limit=20) if not found.error])
    """
    name, operation = _operation_maker(what)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise TypeError("limit is how many items may be under way at once: a whole number, or None")
    if limit is not None and limit < 1:
        raise ConfigurationError("limit is how many items may be under way at once: at least 1")
    iterator = iter(items)
    branch = current_branch("each", "from outside, start a workflow that uses it")
    run, step_id = branch.run, branch.next_step_id()
    run.call_made(step_id)
    return Each(run, step_id, name, operation, iterator, limit or MOST_AT_ONCE)


def _operation_maker(what: object) -> tuple[str, Callable[[Any], Operation[Any]]]:
    """The name of what is called, and what makes the durable call of an item."""
    if isinstance(what, Step):
        what.check((None,), {})
        return what.name, lambda item: what.operation((item,), {})
    if isinstance(what, Workflow | WorkflowRef):
        what(None)
        return what.name, lambda item: RunChild(what(item))
    raise TypeError("each takes a step, a transaction or a workflow that is called with one argument")


class Each(AsyncIterator[Outcome[I, R]], Generic[I, R]):
    """The outcomes of items, in the order of their completion: `async for outcome in each(…)`."""

    def __init__(
        self,
        run: Run,
        step_id: str,
        name: str,
        operation: Callable[[Any], Operation[R]],
        items: Iterator[I],
        limit: int,
    ) -> None:
        self._run = run
        self._step_id = step_id
        self.name: str = name
        self._operation = operation
        self._items: Iterator[I] | None = items
        self._limit = limit
        self._taken = 0
        self._under_way: dict[int, tuple[I, Operation[R]]] = {}
        self._completed: dict[int, Outcome[I, R]] = {}
        self._expired: set[int] = set()
        self._recovered: list[int] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._buffer: deque[Outcome[I, R]] = deque()
        self._failure: Exception | None = None
        self._interrupted = False
        self._begun = self._closed = False
        self._news = asyncio.Event()

    def __aiter__(self) -> "Each[I, R]":
        return self

    async def __anext__(self) -> Outcome[I, R]:
        branch = current_branch("each", "iterate where it was made")
        if not self._begun:
            self._begun = True
            self._take(self._limit)
        while not self._buffer:
            if self._closed or not self._under_way:
                raise (None if self._closed else self._failure) or StopAsyncIteration
            for index in await call(branch, Batch(self)):
                await self._hand_out(index)
        return self._buffer.popleft()

    async def aclose(self) -> None:
        """Ends the iteration and cancels what runs; of that nothing is recorded."""
        self._closed, self._items = True, None
        self._buffer.clear()
        self._news.set()
        for task in tuple(self._running):
            task.cancel()

    # Taking and running items

    def _take(self, count: int) -> None:
        """Takes items from the iterable and begins their calls, unless the journal has their outcomes."""
        for _ in range(count):
            if self._items is None:
                return
            try:
                item = next(self._items)
            except StopIteration:
                self._items = None
                return
            except Exception as error:
                self._items, self._failure = None, error
                return
            index, self._taken = self._taken, self._taken + 1
            self._under_way[index] = item, self._operation(item)
            record = self._run.journal.get(item_id(self._step_id, index))
            if record is None or not record.finished:
                self._begin(index)
            elif record.outcome == Code.INTERRUPTED:
                self._interrupted = True
            elif record.outcome == Code.EXPIRED:
                self._expired.add(index)

    def _begin(self, index: int) -> None:
        if self._interrupted:
            return
        step_id = item_id(self._step_id, index)
        name = f"item {step_id} of workflow {self._run.workflow_id}"
        task = spawn(self._run, self._complete(index), name)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def _complete(self, index: int) -> None:
        try:
            self._completed[index] = await self._outcome(index)
        except Expired:
            self._expired.add(index)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._interrupted = self._interrupted or task.cancelled()
        self._news.set()

    async def _outcome(self, index: int) -> Outcome[I, R]:
        item, operation = self._under_way[index]
        none: Any = None
        if index in self._expired:
            late = WaitTimeout("the deadline of the block in which this item was begun has passed")
            return Outcome(item=item, value=none, error=late)
        before = cancellations()
        try:
            value = await durable(self._run, item_id(self._step_id, index), operation)
        except Exception as error:
            self._run.check()
            return Outcome(item=item, value=none, error=error)
        except asyncio.CancelledError as error:
            if isinstance(error, Expired) or cancellations() > before or self._run.cancelling:
                raise
            # What the body of the step has raised by itself, as one does that awaits a cancelled task.
            self._run.check()
            failure = RemoteError("asyncio.CancelledError", str(error))
            failure.__cause__ = error
            return Outcome(item=item, value=none, error=failure)
        return Outcome(item=item, value=value)

    # Handing out

    async def _hand_out(self, index: int) -> None:
        """Puts an outcome where the loop gets it, and takes the next item in its place. Waits for nothing:
        what a batch has recorded is in the journal, or here.
        """
        if index not in self._under_way:
            if index < self._taken or self._closed:
                return  # another branch, iterating too, was first
            self._take(index + 1 - self._taken)  # more were under way at once then
            if index not in self._under_way:
                self._park(index)
        outcome = self._completed.pop(index, None) or await self._outcome(index)
        del self._under_way[index]
        self._expired.discard(index)
        self._buffer.append(outcome)
        self._take(1)

    def _park(self, index: int) -> NoReturn:
        """The journal knows more items than the iterable gives now [W5]."""
        recorded = f"item {index} of each {self.name!r}"
        error = NondeterminismError(
            self._run.workflow_id, self._step_id, recorded, f"an iterable of {self._taken} items"
        )
        self._run.park(error)
        raise error

    async def next_batch(self) -> list[int]:
        """Which items have completed and not been handed out, once there is one, in the order of completion:
        first those that had done so before a crash. Empty if nothing more will come.
        """
        while True:
            self._news.clear()
            found = self.ready()
            if found or self._closed or not self._under_way:
                return found
            if not self._running:
                if self._interrupted or not self._expired:
                    raise asyncio.CancelledError  # what is left was cancelled with the workflow
                check_passed(self._run)
                return sorted(self._expired)[:MOST_IN_BATCH]
            await self._news.wait()

    def ready(self) -> list[int]:
        """Those that can be handed out at once."""
        return [*self._recovered_first(), *self._completed][:MOST_IN_BATCH]

    def _recovered_first(self) -> list[int]:
        """Items that were recorded before a crash and are still to be handed out, in the order of records."""
        if self._recovered is None:
            self._recovered = self._run.recorded_items(self._step_id)
        if self._recovered:
            self._recovered = [i for i in self._recovered if i in self._under_way or i >= self._taken]
        return [index for index in self._recovered if index in self._under_way]


class Batch(Made[list[int]]):
    """Which items are handed out next, in which order."""

    __slots__ = ("each", "name")
    kind: ClassVar[str] = "each"

    def __init__(self, each: Each[Any, Any]) -> None:
        self.each = each
        self.name: str = each.name

    @property
    def type(self) -> object:
        return list[int]

    async def make(self, run: Run) -> list[int]:
        return self.each.ready() or await in_time(run, self.each.next_batch())
