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
ABOUT = 0.05
"""Seconds: so much earlier than others the timer of one call may fire at the deadline of both."""
SAME = 0.001
"""Seconds: deadlines that are no further apart than this pass together."""


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
        self._lock: asyncio.Lock = asyncio.Lock() if outer is None else outer._lock

    @property
    def first_due(self) -> float | None:
        """When the first of the deadlines around here passes; None if all blocks have been left by those who
        entered them.
        """
        return min((block.due for block in self.around() if block.due is not None), default=None)

    @property
    def first(self) -> "Block":
        """Whose deadline that is; of those that pass at the same moment, the outermost's."""
        until = (self.first_due or 0.0) + SAME
        ending = [block for block in self.around() if block.due is not None and block.due <= until]
        return ending[-1] if ending else self

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
        if any(block.due is None for block in self.around()):
            await self.ask()
        if not waits:
            self._check()

    async def begin(self) -> None:
        """May the body of a step inside begin? By then the deadlines around here are written down.

        Raises:
            DeadlinePassed: if not.
        """
        if not all(block.recorded for block in self.around()):
            await self.ask()
        self._check()

    def _check(self) -> None:
        first = self.first_due
        if first is not None and first <= _clock.monotonic():
            raise DeadlinePassed(self)

    async def ask(self) -> None:
        """Asks the database how long is left until each deadline, and writes down those that are not yet."""
        if all(block.recorded for block in self.around()):
            await self._ask()
        else:
            async with self._lock:  # of the outermost: nothing is written down twice in one batch
                await self._ask()

    async def _ask(self) -> None:
        blocks = tuple(self.around())[::-1]
        if not blocks:
            return
        now = _clock.monotonic()
        claims = [
            Claim(step_id=block.step_id, kind=KIND, timeout=0.0 if block.due is None else block.due - now)
            for block in blocks
        ]
        answers = await self.run.commit(Claims(owner=self.run.owner, claims=claims))
        now = _clock.monotonic()
        for block, answer in zip(blocks, answers, strict=True):
            assert answer.amount is not None, "a deadline is a moment"
            block.due = now + answer.amount
            block.recorded = True


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
        await block.begin()
    except BaseException:
        body.close()
        raise
    due = block.first_due
    if due is None:
        return await body
    limit = asyncio.timeout(due - _clock.monotonic())
    try:
        async with limit:
            return await body
    except TimeoutError:
        if limit.expired():
            raise DeadlinePassed(block) from None
        raise


def check_passed(run: Run) -> None:
    """Has the deadline of a block around here passed, for all that is known to have ended by it?

    Raises:
        DeadlinePassed: if so.
    """
    block = current_block(run)
    due = None if block is None else block.first_due
    if block is not None and due is not None and due <= _clock.monotonic() + ABOUT:
        raise DeadlinePassed(block)


def expire(depth: int | None) -> Expired | None:
    """What the caller of an expired call sees; None if there is no block of this depth around it."""
    block = innermost.get()
    while block is not None and block.depth != depth:
        block = block.outer
    if block is None:
        return None
    block.expired = True
    return Expired("the deadline of a block around this call has passed")
