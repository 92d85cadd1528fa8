"""Reading streams: what a reader is, and readers outside workflow code, where nothing is recorded.

How readers of one stream share what they fetch is the business of the engine's tails; how workflow code reads
is in `recorded`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from holdfast import _keys
from holdfast._engine.engine import Engine
from holdfast._engine.tails import Part, Tail
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._run.operation import Wait
from holdfast._store.looks import StreamLook, StreamNews, StreamValue
from holdfast.errors import StreamTrimmed, WorkflowNotFound
from holdfast.types import Item

T = TypeVar("T")
R = TypeVar("R")
MOST_OFFSET = 2**62
DROPPED = Part(StreamNews((), closed=False, status=None), 0)


class Span(NamedTuple):
    """Which part of a stream is read: behind `after`, or the `last` values that there are at first."""

    after: int
    last: int | None
    follow: bool


def span_of(after: int | None, last: int | None, follow: bool) -> Span:
    """Checks what was asked for, before any I/O.

    Raises:
        ValueError: if a number is out of range, or if both are given.
        TypeError: if one is no number.
    """
    for given, least, meaning in (
        (
            after,
            -1,
            "after is the offset of the last value already read: 0 or more, or None for the beginning",
        ),
        (last, 0, "last is how many values to start before the end: 0 or more, or None for the beginning"),
    ):
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int):
            raise TypeError(f"{meaning}; not a {type(given).__name__}")
        if not least <= given < MOST_OFFSET:
            raise ValueError(meaning)
    if after is not None and last is not None:
        raise ValueError("after says where to begin and so does last: give one of them")
    return Span(-1 if after is None else after, last, follow)


class Reader(AsyncIterator[T], Generic[T]):
    """The values of one stream, in order, as they are committed [S5]. `async for value in reader`.

    It stops when the stream has been closed, or when its workflow is no longer active, after the last value
    [S4]; with `follow=False` after the last value that was there when it first looked. Then `closed` says
    whether the writer has closed it, and `ended` whether nothing can follow; both are False where that is not
    known. One task at a time may read. Between two values it holds a page of values that it has read and no
    more, at most about 1 MiB, so that it may be dropped at any time [S9].

    Raises (when iterated):
        WorkflowNotFound: if there is no such workflow.
        StreamTrimmed: if the next value is no longer kept. From the beginning, it begins at the oldest one.
        PayloadDecodeError: if a value does not fit the type; the next one can still be read.
        RuntimeError: if another task waits for its next value.
    """

    def __init__(self, engine: Engine, workflow_id: str, key: str, span: Span, type: object) -> None:
        self.closed: bool = False
        self.ended: bool = False
        self.offset: int = span.after
        """The offset of the last value given; where another reader goes on with `after=`."""
        self._engine = engine
        self.workflow_id = workflow_id
        self.key = key
        self._span = span
        self._type = type
        self._context = engine.context(workflow_id, "stream", key)
        self._page: Sequence[StreamValue] = ()
        self._index = 0
        self._stop: int | None = None
        self._last: Literal["closed", "ended", "stopped"] | None = None
        self._dropped = False
        self._fetching = False

    def __aiter__(self) -> "Reader[T]":
        return self

    def __anext__(self) -> Wait[T]:
        return self._ask(self._take_value)

    def _ask(self, take: Callable[[], R]) -> Wait[R]:
        """The call that waits until a value is at hand, and takes it."""
        return Wait(partial(self._give, take))

    async def _give(self, take: Callable[[], R]) -> R:
        while self._index >= len(self._page):
            if self._over():
                raise StopAsyncIteration
            await self._fetch_alone()
        return take()

    def _over(self) -> bool:
        """Has everything been given that there is to give?"""
        if self._last is not None and not self._dropped:
            self.closed = self._last == "closed"
            self.ended = self._last != "stopped"
        return self._dropped or self._last is not None

    def _take(self) -> Item[T]:
        """The next value at hand."""
        found = self._page[self._index]
        self._index += 1
        if self._index == len(self._page):
            self._page, self._index = (), 0
        self.offset = found.offset
        context = self._context
        if found.origin is not None:
            context = self._engine.context(found.origin, "stream", self.key)
        value = self._engine.codec.decode(found.payload, self._type, context)
        return Item(value=value, offset=found.offset, attempt=found.attempt)

    def _take_value(self) -> T:
        return self._take().value

    def _put(self, values: Sequence[StreamValue], index: int = 0) -> None:
        """Has values at hand, from an index on; none beyond where it is to stop."""
        if self._stop is not None and values and values[-1].offset >= self._stop:
            values = [value for value in values if value.offset < self._stop]
        self._page, self._index = values, index

    async def _fetch_alone(self) -> None:
        if self._fetching:
            raise RuntimeError(f"{self!r} is waited for by another task; one task at a time may read")
        self._fetching = True
        try:
            await self._fetch()
        finally:
            self._fetching = False

    async def _fetch(self) -> None:
        """Waits for the next values, or for the end."""
        raise NotImplementedError

    async def collect(self) -> list[T]:
        """Waits for the end of the stream and gives the values not yet read."""
        return [value async for value in self]

    def items(self) -> "Items[T]":
        """The values with their offsets and the attempt that wrote them: `Item(value, offset, attempt)`."""
        return Items(lambda: self._ask(self._take))

    async def aclose(self) -> None:
        """Stops the reader: whoever iterates it, or waits for its next value, gets no further one."""
        self._dropped = True
        self._page, self._index = (), 0

    async def __aenter__(self) -> "Reader[T]":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<reader of stream {self.key!r} of workflow {self.workflow_id!r} at offset {self.offset}>"


class Items(AsyncIterator[Item[T]], Generic[T]):
    """What a reader gives, each value as an `Item` [S6]. `async for item in reader.items()`."""

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[], Wait[Item[T]]]) -> None:
        self._ask = ask

    def __aiter__(self) -> "Items[T]":
        return self

    def __anext__(self) -> Wait[Item[T]]:
        return self._ask()


class LiveReader(Reader[T]):
    """A reader that asks the table whenever it needs to."""

    def __init__(self, engine: Engine, workflow_id: str, key: str, span: Span, type: object) -> None:
        super().__init__(engine, workflow_id, key, span, type)
        self._bells = (
            _keys.wake_key("stream", workflow_id, key),
            _keys.wake_key("end", workflow_id),
            f"reader {id(self):x}",  # its own, so that closing it wakes nobody else
        )
        self._tail: Tail | None = None
        self._new = True

    async def _fetch(self) -> None:
        if not self._span.follow:
            await self._look_once()
        elif self._new and self._span.last is not None:
            await self._find_beginning(self._span.last)
        else:
            part = await self._engine.waiters.until(self._bells, self._look)
            assert part is not None, "a wait without a deadline ends with news"
            self._receive(part.news, part.begin)

    async def _look(self) -> Part | None:
        if self._dropped:
            return DROPPED
        if self._tail is None:
            self._tail = self._engine.tails.tail(self.workflow_id, self.key)
        if not self._new:
            return await self._tail.look(self.offset)
        part = await self._tail.ask(self.offset)  # who comes sees what is there now
        if part is None:
            self._new = False
        return part

    async def _find_beginning(self, last: int) -> None:
        """Starts so many values from the end as it is now."""
        news = await self._engine.lookups.look(StreamLook(self.workflow_id, self.key, -1, last))
        assert news is not None, "a look for the last values is always answered"
        self.offset = max(news.length - last, news.oldest) - 1
        self._receive(news, 0)

    async def _look_once(self) -> None:
        """What is there now: up to where the stream ended at the first look."""
        last = self._span.last if self._new else None
        news = await self._engine.lookups.look(StreamLook(self.workflow_id, self.key, self.offset, last))
        if news is None:
            self._last = "stopped"
            return
        if last is not None:
            self.offset = max(news.length - last, news.oldest) - 1
        if self._stop is None:
            self._stop = news.length
        self._receive(news, 0)
        reached = news.values[-1].offset + 1 if news.values else self._stop
        if self._last is None and reached >= self._stop:
            self._last = "stopped"

    def _receive(self, news: StreamNews, index: int) -> None:
        if self._dropped:
            return
        if news.status is None:
            raise WorkflowNotFound(self.workflow_id)
        begin = news.values[index].offset if news.values else max(news.oldest, self.offset + 1)
        if begin > self.offset + 1:
            if not self._new or self.offset != -1:
                raise StreamTrimmed(begin)
            self.offset = begin - 1
        self._new = False
        if news.final and (self._stop is None or news.length <= self._stop):
            self._last = "closed" if news.closed else "ended"
        self._put(news.values, index)

    def _over(self) -> bool:
        over = super()._over()
        if over:
            self._tail = None
        return over

    async def aclose(self) -> None:
        await super().aclose()
        self._tail = None
        self._engine.waiters.wake(self._bells[-1])


def open_reader(
    engine: Engine, workflow_id: str, key: "str | Channel[Any]", span: Span, type: object
) -> Reader[Any]:
    """A reader over an engine. No I/O until it is iterated."""
    name, kind = name_and_type(key, "stream name", type)
    return LiveReader(engine, _keys.check_workflow_id(workflow_id), name, span, kind)
