"""Piping: items pass through and are written on the way, several at a time. Knows nothing of streams.

By time and count in a step, where a task writes while the next items come. By count alone in workflow code:
which items make a batch must be the same on a replay, and no clock is.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from holdfast import _clock
from holdfast._engine.waiters import Alarm
from holdfast.config import seconds_of
from holdfast.errors import WorkflowStopped

T = TypeVar("T")
MOST_ITEMS = 100
MOST_BYTES = 1024 * 1024
"""A batch that is larger than this waits for no further items."""


def check_most(most: int | None) -> int | None:
    """How many items make a batch at most.

    Raises:
        ValueError: if it is less than 1.
        TypeError: if it is no whole number.
    """
    if most is None:
        return None
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"most is how many values are written at once, not a {type(most).__name__}")
    if most < 1:
        raise ValueError("most is how many values are written at once: 1 or more")
    return most


def check_source(source: object) -> None:
    """Can the items of this be passed on?

    Raises:
        TypeError: if not.
    """
    if not hasattr(source, "__aiter__"):
        raise TypeError(
            f"pipe takes an async iterable, such as an async generator, not {type(source).__name__}"
        )


async def pipe_by_count(
    source: AsyncIterable[T], most: int, write: Callable[[list[T]], Awaitable[None]]
) -> AsyncIterator[T]:
    """Passes items on, and has each batch written before its last item goes on."""
    gathered: list[T] = []
    try:
        async for item in source:
            gathered.append(item)
            if len(gathered) >= most:
                batch, gathered = gathered, []
                await write(batch)
            yield item
    except (Exception, asyncio.CancelledError):
        # Not when the loop is left early: whoever collects the garbage is in no place of the workflow.
        if gathered:
            await write(gathered)
        raise
    if gathered:
        await write(gathered)


async def pipe_by_time(
    source: AsyncIterable[T],
    encode: Callable[[T], bytes],
    write: Callable[[list[bytes]], Awaitable[None]],
    *,
    every: float,
    most: int,
    name: str,
) -> AsyncIterator[T]:
    """Passes items on; they are written meanwhile."""
    gathering = Gathering(write, every, most, name)
    try:
        async for item in source:
            await gathering.add(encode(item))
            yield item
    except BaseException:
        # What has been passed is written; the error under way goes on, even if that fails.
        await gathering.flush()
        raise
    await gathering.flush()
    gathering.check()


class Gathering:
    """What has been passed and not yet written, at most one batch, and the task that writes it.

    The task lives while there is something to write. Whoever adds waits when a batch is full that cannot be
    written yet, and is told of what went wrong.
    """

    def __init__(
        self, write: Callable[[list[bytes]], Awaitable[None]], every: float, most: int, name: str
    ) -> None:
        self._write = write
        self._every = every
        self._most = most
        self._name = name
        self._payloads: list[bytes] = []
        self._size = 0
        self._next_write = 0.0
        self._task: asyncio.Task[None] | None = None
        self._hurry = Alarm()
        self._room = Alarm()
        self._error: BaseException | None = None

    @property
    def _full(self) -> bool:
        return len(self._payloads) >= self._most or self._size >= MOST_BYTES

    async def add(self, payload: bytes) -> None:
        """Takes one more, in the order of the calls.

        Raises:
            what went wrong with an earlier one.
        """
        while self._full and self._error is None:
            self._room.clear()
            await self._room.wait()
        self.check()
        self._payloads.append(payload)
        self._size += len(payload)
        if self._task is None:
            self._task = asyncio.create_task(self._write_all(), name=f"holdfast pipe {self._name}")
        elif self._full:
            self._hurry.ring()

    async def flush(self) -> None:
        """Has everything written at once; being cancelled again gives up."""
        self._hurry.ring()
        if self._task is not None:
            await self._task

    def check(self) -> None:
        """Has everything gone well so far?

        Raises:
            what has not.
        """
        if self._error is not None:
            raise self._error

    async def _write_all(self) -> None:
        try:
            while self._payloads:
                if not self._full:
                    await self._hurry.pause(max(self._next_write - _clock.monotonic(), 0.0))
                batch, self._payloads, self._size = self._payloads, [], 0
                self._hurry.clear()
                self._room.ring()
                self._next_write = _clock.monotonic() + self._every
                await self._write(batch)
        except (Exception, WorkflowStopped) as error:
            self._error = error  # for whoever adds next, or ends
        finally:
            self._task = None
            self._room.ring()


def seconds_between(every: object) -> float:
    """Seconds from one write to the next at least.

    Raises:
        ValueError, TypeError: as for any duration.
    """
    seconds = seconds_of(every)  # type: ignore[arg-type]
    if seconds is None:
        raise TypeError("every is a number of seconds or a timedelta")
    return seconds
