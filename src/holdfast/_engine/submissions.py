"""What is handed over to the writer, and who waits for it: records, and jobs between two batches.

How they travel is the business of `writer`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from holdfast import _clock
from holdfast._store.commits import Answer, Record
from holdfast.errors import NotRunning

CLOSED = "the runtime or client has been left; what was on its way may have been committed"

T = TypeVar("T")
Answers = Sequence[Answer]
Received = Callable[[Answers], Record | None]
"""What is done with the answers, exactly once, whether or not the caller still waits for them. What it
returns, a record that undoes what was taken, is committed only if the caller has been cancelled."""


class Submission:
    """A record on its way, and the caller who waits for it."""

    __slots__ = ("born", "future", "late", "record", "sent")

    def __init__(self, record: Record, future: "asyncio.Future[Answers]") -> None:
        self.record: Record = record
        self.future: asyncio.Future[Answers] = future
        self.born: float = _clock.monotonic()
        self.sent: bool = False
        self.late: asyncio.Future[Answers] | None = None

    @property
    def reply(self) -> "asyncio.Future[Answers]":
        """Where the answers are or will be; of a caller cancelled in flight, on a future of its own."""
        if not self.future.cancelled():
            return self.future
        if self.late is None:
            self.late = self.future.get_loop().create_future()
        return self.late

    def answer(self, answers: Answers) -> None:
        """Gives the caller its answers, even if it was cancelled in flight and does not wait for them yet."""
        if not self.future.done():
            self.future.set_result(answers)
        elif not self.reply.done():
            self.reply.set_result(answers)

    def fail(self, error: Exception) -> None:
        """Gives the caller an error instead."""
        if not self.future.done():
            self.future.set_exception(error)
        elif self.sent and not self.reply.done():
            self.reply.set_exception(error)


class Job:
    """Something that a lane does between two batches."""

    __slots__ = ("act", "begun", "future")

    def __init__(self, act: Callable[[], Awaitable[Any]], future: "asyncio.Future[Any]") -> None:
        self.act: Callable[[], Awaitable[Any]] = act
        self.future: asyncio.Future[Any] = future
        self.begun: bool = False

    async def carry_out(self) -> None:
        """Does it, unless whoever wanted it has gone."""
        if self.future.done():
            return
        self.begun = True
        try:
            result = await self.act()
        except asyncio.CancelledError:
            self.future.set_exception(NotRunning(CLOSED))
            raise
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


async def outlast(future: "asyncio.Future[T]") -> T | None:
    """The result of a future, waited for through any number of cancellations; None if it failed.

    The cancellations are not lost: the caller is on its way out with the first one already.
    """
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    return None if future.cancelled() or future.exception() else future.result()
