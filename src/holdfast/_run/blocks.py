"""Deadlines over blocks of durable calls: what `holdfast.timeout` is for the calls inside it.

A block's deadline is an open row of the journal, written the first time that a call inside really has to
wait, or before the body of a step runs: after a crash only the rest is waited [W9]. A block acts through the
durable calls inside it and nothing else: a call that waits looks at least once, then ends when the deadline
passes; a step's body is cancelled; a call with an effect is not begun any more. What ends so is recorded,
with the depth of the block, and so ends again at the same place in a replay. Its caller sees a
CancelledError, so that no `except TimeoutError` inside takes it for its own; the block turns it into one
when it is left.

The blocks around a call are what its task, and the tasks in which that was born, had entered.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from holdfast import _clock
from holdfast._run.run import Run
from holdfast._store.commits import Claim, Claims

T = TypeVar("T")
KIND = "timeout"


class Expired(asyncio.CancelledError):
    """A durable call was ended by the deadline of a block around it."""


class DeadlinePassed(BaseException):
    """Ends a call that is being performed, because the deadline of a block around it has passed. Not for
    users, and not for an `except Exception` on its way.
    """

    def __init__(self, innermost: "Block") -> None:
        super().__init__("the deadline of a block has passed")
        self.depth: int = innermost.first.depth


class Block:
    """One deadline, and what has become of it. `due` is a moment of `_clock.monotonic()`, None until it has
    been asked of the journal; `depth` is 0 for the outermost.
    """

    __slots__ = ("_lock", "closed", "depth", "due", "expired", "outer", "recorded", "run", "step_id")

    def __init__(self, run: Run, step_id: str, seconds: float, outer: "Block | None") -> None:
        self.run = run
        self.step_id = step_id
        self.outer = outer
        self.depth: int = 0 if outer is None else outer.depth + 1
        self.due: float | None = None if step_id in run.journal else _clock.monotonic() + seconds
        self.recorded: bool = False
        self.expired: bool = False
        self.closed: bool = False
        self._lock = asyncio.Lock()

    @property
    def first(self) -> "Block":
        """Of this block and those around it, the one whose deadline comes first; of equals, the outer one."""
        return min(reversed(tuple(self.around())), key=_due_of, default=self)

    @property
    def first_due(self) -> float | None:
        """When that is; None if all of them have been left, by whoever entered them."""
        return min(map(_due_of, self.around()), default=None)

    def around(self) -> Iterator["Block"]:
        """This block and those around it, as far as they have not been left."""
        block: Block | None = self
        while block is not None:
            if not block.closed:
                yield block
            block = block.outer

    async def admit(self, *, waits: bool) -> None:
        """May a call inside begin? One that only `waits` always may: it looks once [W9].

        Raises:
            DeadlinePassed: if not.
        """
        for block in tuple(self.around()):
            if block.due is None:
                await block.write()
        first = self.first_due
        if not waits and first is not None and first <= _clock.monotonic():
            raise DeadlinePassed(self)

    async def record(self) -> None:
        """Sees to it that the deadlines of this block and those around it are written down."""
        for block in tuple(self.around()):
            if not block.recorded:
                await block.write()

    async def write(self) -> None:
        """Writes down the deadline, or learns what is written: once, for however many calls wait inside."""
        async with self._lock:
            if self.recorded:
                return
            left = 0.0 if self.due is None else self.due - _clock.monotonic()
            claimed = Claim(step_id=self.step_id, kind=KIND, timeout=left)
            (answer,) = await self.run.commit(Claims(owner=self.run.owner, claims=(claimed,)))
            assert answer.amount is not None, "a deadline is a moment"
            if self.due is None:
                self.due = _clock.monotonic() + answer.amount
            self.recorded = True


def _due_of(block: Block) -> float:
    return float("inf") if block.due is None else block.due


innermost: ContextVar[Block | None] = ContextVar("holdfast_block", default=None)


def current_block(run: Run) -> Block | None:
    """The innermost block around the running code. None has a say while a cancelled workflow cleans up."""
    block = innermost.get()
    return block if block is None or not run.cancelling else None


async def in_time(run: Run, body: Coroutine[Any, Any, T]) -> T:
    """Runs the body of a step for as long as the blocks around it allow.

    Raises:
        DeadlinePassed: if that was not long enough; the body has been cancelled.
    """
    block = current_block(run)
    if block is None:
        return await body
    try:
        await block.record()
    except BaseException:
        body.close()
        raise
    due = block.first_due
    if due is None:
        return await body
    if due <= _clock.monotonic():
        body.close()
        raise DeadlinePassed(block)
    limit = asyncio.timeout(due - _clock.monotonic())
    try:
        async with limit:
            return await body
    except TimeoutError:
        if limit.expired():
            raise DeadlinePassed(block) from None
        raise


def expire(depth: int | None) -> Expired | None:
    """What the caller of an expired call sees; None if there is no block of this depth around it."""
    block = innermost.get()
    while block is not None and block.depth != depth:
        block = block.outer
    if block is None:
        return None
    block.expired = True
    return Expired("the deadline of a block around this call has passed")
