"""One durable deadline over all durable calls in a block. How it acts on them is told in `_run/blocks.py`."""

import asyncio
from datetime import timedelta
from types import TracebackType

from holdfast._run.blocks import KIND, Block, innermost
from holdfast._run.context import current_branch
from holdfast._run.operation import check_match
from holdfast.config import seconds_of
from holdfast.errors import WaitTimeout


class Timeout:
    """A block with a deadline; made by `timeout`."""

    __slots__ = ("_block", "_cancelling", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self._block: Block | None = None
        self._cancelling = 0

    @property
    def expired(self) -> bool:
        """Has the deadline ended a call in the block?"""
        return self._block is not None and self._block.expired

    async def __aenter__(self) -> "Timeout":
        branch = current_branch("timeout", "outside, use asyncio.timeout")
        if self._block is not None:
            raise RuntimeError("a timeout cannot be entered twice; make another")
        task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        step_id = branch.next_step_id()
        check_match(branch.run, step_id, KIND, "")
        self._block = Block(branch.run, step_id, self.seconds, innermost.get())
        innermost.set(self._block)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block, task = self._block, asyncio.current_task()
        assert block is not None
        assert task is not None
        block.closed = True
        innermost.set(block.outer)
        if not block.expired or (kind is not None and not issubclass(kind, asyncio.CancelledError)):
            return
        run = block.run
        if run.cancelling or run.stopped or run.over or task.cancelling() > self._cancelling:
            return  # somebody else's cancelling goes before
        raise WaitTimeout(f"the calls in this block took longer than {self.seconds:g} s") from error

    def __repr__(self) -> str:
        return f"<timeout of {self.seconds:g} s>"


def timeout(seconds: float | timedelta) -> Timeout:
    """One durable deadline over every durable call in an `async with` block. Only in a workflow.

    The deadline is `seconds` after the block is entered, by the database's clock; it is recorded the first
    time that a call in the block has to wait, and counts on through crashes [W9]. When it passes, the call
    that waits ends, the body of a step that runs is cancelled, and what is called in the block from then on
    does not begin; a call that only waits looks once all the same. Calls in tasks that were made in the block
    belong to it. Which call was ended is recorded, so that a replay ends there too.

    Blocks nest. Of a block and a `recv(timeout=…)` in it the nearer deadline wins; an `except TimeoutError`
    around that recv does not see the block's. Only durable calls are ended: not `asyncio.sleep`, nor a
    computation. What has to be cleaned up durably belongs behind the block.

    Raises:
        WaitTimeout: when the block is left, if its deadline ended a call in it; a TimeoutError.
        NotInWorkflow: outside a workflow, or inside a step.
        ValueError: if `seconds` is negative or not finite.

    Example:
        >>> async def order(parts: list[str], arrived: "Topic[str]") -> list[str]:
        ...     async with timeout(24 * 3600):
        ...         return [await arrived.recv() for _ in parts]
    """
    duration = seconds_of(seconds)
    if duration is None:
        raise TypeError("timeout takes a number of seconds or a timedelta")
    return Timeout(duration)
