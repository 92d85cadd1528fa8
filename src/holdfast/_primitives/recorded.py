"""What workflow code reads of streams and events, recorded: so that a replay reads the same, without I/O.

Where nothing is at hand, asking for the next value is a durable call. Its record holds what it has brought:
of a stream a batch of values, from which the next ones are given without a call [S8]; of an event the value
[E3]. The record stands for itself: what is trimmed or replaced later changes nothing.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from holdfast import _keys
from holdfast._engine.engine import Engine
from holdfast._primitives.reading import MOST_OFFSET, Reader, Span
from holdfast._primitives.watching import Watch
from holdfast._run.context import Branch, current_branch
from holdfast._run.operation import Operation, Wait, claim, durable
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Code
from holdfast._store.looks import beginning_of, oldest_of, values_of
from holdfast._store.picks import Alternative
from holdfast.errors import StreamTrimmed, WorkflowNotFound

T = TypeVar("T")
R = TypeVar("R")
INSTEAD = "a reader that was opened in workflow code is used there"


class Buffered(Wait[T]):
    """A value at hand, or the end: awaiting it makes no durable call."""

    __slots__ = ("_give", "_key")

    def __init__(self, key: str, give: Callable[[], T]) -> None:
        super().__init__(self._run)
        self._key = key
        self._give = give

    async def _run(self) -> T:
        return self._give()

    def hand_over(self, branch: Branch) -> tuple[str, Operation[T]]:
        self._use()
        return "", AtHand(self._key, self._give)


class AtHand(Operation[T]):
    """A value at hand as an alternative of a `first`."""

    __slots__ = ("_give", "name")
    kind: ClassVar[str] = "at_hand"

    def __init__(self, key: str, give: Callable[[], T]) -> None:
        self.name = key
        self._give = give

    def alternative(self, run: Run, step_id: str) -> Alternative:
        return Alternative(kind=self.kind)

    def conclude(self, run: Run, answer: Answer) -> T:
        return self._give()


class Fetch(Wait[T]):
    """A durable call that fetches what comes next."""

    __slots__ = ("_run_of", "_step_id")

    def __init__(
        self, run: Run, step_id: str, begin: Callable[[], Coroutine[Any, Any, T]], operation: Operation[T]
    ) -> None:
        super().__init__(begin, operation)
        self._run_of = run
        self._step_id = step_id

    def hand_over(self, branch: Branch) -> tuple[str, Operation[T]]:
        self._use()
        if self._run_of is not branch.run:
            raise TypeError("this durable call was not made by the code of this workflow")
        assert self.operation is not None
        return self._step_id, self.operation


class Reading(Operation[T]):
    """A claim of what lies behind a place in a workflow's stream or event."""

    __slots__ = ("after", "bell", "name", "target")

    def __init__(self, target: str, key: str, after: int, bell: str) -> None:
        self.target = target
        self.name = key
        self.after = after
        self.bell = bell

    def alternative(self, run: Run, step_id: str) -> Alternative:
        return Alternative(
            kind=self.kind,
            names=(self.name,),
            target=self.target,
            timeout=self.timeout,
            after=self.after,
            keys=self.bells,
        )

    async def perform(self, run: Run, step_id: str) -> Answer:
        claimed = Claim(
            step_id=step_id,
            kind=self.kind,
            name=self.name,
            target=self.target,
            timeout=self.timeout,
            after=self.after,
        )
        return await claim(run, claimed, self.bells)

    @property
    def timeout(self) -> float | None:
        """Seconds after which there is nothing to wait for any more."""
        return None

    @property
    def bells(self) -> tuple[str, ...]:
        """Whose ringing may bring something."""
        return (self.bell, _keys.wake_key("end", self.target))


class RecordedReader(Reader[T]):
    """A reader in workflow code; `anext` gives a durable call."""

    def __init__(self, engine: Engine, workflow_id: str, key: str, span: Span, type: object) -> None:
        super().__init__(engine, workflow_id, key, span, type)
        self.bell = _keys.wake_key("stream", workflow_id, key)
        self._opened = span.follow and span.last is None
        self._stood: Literal["closed", "ended", "stopped"] = "stopped"

    @property
    def follows(self) -> bool:
        """Does it wait for values that are not there yet?"""
        return self._span.follow

    def _ask(self, take: Callable[[], R]) -> Wait[R]:
        """What is at hand, or the durable call that fetches the next batch and takes the first of it."""
        if self._index < len(self._page) or self._over():
            return Buffered(self.key, partial(self._take_at_hand, take))
        branch = current_branch("reading a stream opened in workflow code", INSTEAD)
        opening = None if self._opened else branch.next_step_id()
        step_id = branch.next_step_id()
        read = ReadStream(self, self.offset, take)
        if opening is None:
            begin = partial(self._read, branch.run, None, step_id, read)
            return Fetch(branch.run, step_id, begin, read)
        return Wait(partial(self._read, branch.run, opening, step_id, read))

    def _take_at_hand(self, take: Callable[[], R]) -> R:
        if self._index < len(self._page):
            return take()
        if self._over():
            raise StopAsyncIteration
        raise self._busy()

    async def _read(self, run: Run, opening: str | None, step_id: str, read: "ReadStream") -> Any:
        if self._fetching:
            raise self._busy()
        self._fetching = True
        try:
            if opening is not None:
                await durable(run, opening, OpenStream(self, self._span))
                if self._over():
                    raise StopAsyncIteration
                read.after = self.offset
            return await durable(run, step_id, read)
        finally:
            self._fetching = False

    def _busy(self) -> RuntimeError:
        return RuntimeError(f"{self!r} is read by another task; one task at a time may read")

    def open(self, position: int, length: int, stood: Literal["closed", "ended", "stopped"]) -> None:
        """Begins behind a position; and ends, unless it follows, where the stream ended then."""
        self._opened = True
        self.offset = position
        if not self._span.follow:
            self._stop, self._stood = length, stood
            self._finish_at(position + 1)

    def receive(self, values: bytes, after: int) -> None:
        """Has a recorded batch at hand, of what lies behind an offset."""
        if self.offset != after:
            raise self._busy()
        oldest = oldest_of(values)
        if oldest is not None:
            raise StreamTrimmed(oldest)
        batch = values_of(values)
        if batch[0].offset > after + 1 and after != -1:
            raise StreamTrimmed(batch[0].offset)
        self._put(batch)
        self._finish_at(batch[-1].offset + 1)
        if not self._page:
            raise StopAsyncIteration  # of what was there at first nothing is left, only what came later

    def finish(self, last: Literal["closed", "ended"]) -> None:
        """Nothing follows."""
        self._last = last
        self._over()

    def stop(self) -> None:
        """Nothing is left of what was there at first."""
        self._last = self._stood
        self._over()

    def _finish_at(self, reached: int) -> None:
        if self._stop is not None and reached >= self._stop:
            self._last = self._stood


class ReadStream(Reading[Any]):
    """The next values of a stream as this workflow has read them; gives the first of them."""

    __slots__ = ("reader", "take")
    kind: ClassVar[str] = "read_stream"

    def __init__(self, reader: RecordedReader[Any], after: int, take: Callable[[], Any]) -> None:
        super().__init__(reader.workflow_id, reader.key, after, reader.bell)
        self.reader = reader
        self.take = take

    @property
    def timeout(self) -> float | None:
        return None if self.reader.follows else 0.0  # what is not there now has been trimmed

    def conclude(self, run: Run, answer: Answer) -> Any:
        _check(self, run, answer)
        if answer.code is Code.TIMEOUT:
            self.reader.stop()
            raise StopAsyncIteration
        if answer.code is not Code.VALUE or answer.payload is None:
            self.reader.finish("closed" if answer.code is Code.CLOSED else "ended")
            raise StopAsyncIteration
        self.reader.receive(answer.payload, self.after)
        return self.take()


class OpenStream(Reading[None]):
    """Where a reader begins and ends that counts from the end, or does not follow."""

    __slots__ = ("reader", "span")
    kind: ClassVar[str] = "read_stream"

    def __init__(self, reader: RecordedReader[Any], span: Span) -> None:
        last = (MOST_OFFSET if span.after == -1 else 0) if span.last is None else span.last
        super().__init__(reader.workflow_id, reader.key, -2 - last, reader.bell)
        self.reader = reader
        self.span = span

    def conclude(self, run: Run, answer: Answer) -> None:
        _check(self, run, answer)
        assert answer.payload is not None
        position, length = beginning_of(answer.payload)
        stood: Literal["closed", "ended", "stopped"] = "stopped"
        if answer.code is not Code.VALUE:
            stood = "closed" if answer.code is Code.CLOSED else "ended"
        self.reader.open(position if self.span.after == -1 else self.span.after, length, stood)


def _check(operation: Reading[Any], run: Run, answer: Answer) -> None:
    if answer.code is Code.ERROR:
        raise operation.failure(run, answer)
    if answer.code is Code.NOT_FOUND:
        raise WorkflowNotFound(operation.target)


class RecordedWatch(Watch[T]):
    """A watch in workflow code; `anext` gives a durable call."""

    __slots__ = ()

    def __anext__(self) -> Wait[T]:
        if self._over:
            return Buffered(self.key, self._stop)
        branch = current_branch("watching an event from workflow code", INSTEAD)
        watch = WatchEvent(self, self._revision)
        step_id = branch.next_step_id()
        begin = partial(self._alone, partial(durable, branch.run, step_id, watch))
        return Fetch(branch.run, step_id, begin, watch)

    def _stop(self) -> T:
        raise StopAsyncIteration

    def receive(self, recorded: bytes, after: int) -> T:
        """The recorded value that was the latest behind a revision."""
        if self._revision != after:
            raise self._busy()
        (found,) = values_of(recorded)
        return self._take(found.offset, found.payload, found.origin)


class WatchEvent(Reading[Any]):
    """The next value of an event as this workflow has seen it."""

    __slots__ = ("watch",)
    kind: ClassVar[str] = "watch_event"

    def __init__(self, watch: RecordedWatch[Any], after: int) -> None:
        super().__init__(watch.workflow_id, watch.key, after, watch.bells[0])
        self.watch = watch

    def conclude(self, run: Run, answer: Answer) -> Any:
        _check(self, run, answer)
        if answer.code is not Code.VALUE or answer.payload is None:
            self.watch.finish()
            raise StopAsyncIteration
        return self.watch.receive(answer.payload, self.after)
