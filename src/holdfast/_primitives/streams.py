"""Streams: append-only values of a workflow, read live from anywhere, by offset, without gaps or repeats."""

from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload
from uuid import uuid4

from holdfast import _keys
from holdfast._engine.engine import Engine
from holdfast._observe import point
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._run.context import Branch, StepScope, current_scope
from holdfast._run.operation import Operation, Wait, call
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Close, Code, Write
from holdfast._store.looks import StreamLook, StreamNews, StreamValue
from holdfast.errors import NotInWorkflow, StreamClosed, WorkflowNotFound
from holdfast.types import Item

T = TypeVar("T")
INSTEAD = "only a workflow writes its streams"


class Stream(Channel[T], Generic[T]):
    """A typed name for a stream of values.

    Example:
        >>> tokens = Stream[str]("tokens")
        >>> tokens
        Stream[str]('tokens')
    """

    __slots__ = ()
    noun = "stream name"

    def write(self, *values: T) -> Wait[None]:
        """Appends values, all in one commit; see `holdfast.write_stream`."""
        return write_stream(self, *values)

    def close(self) -> Wait[None]:
        """Ends the stream; see `holdfast.close_stream`."""
        return close_stream(self)

    def read(self, workflow_id: str, *, after: int | None = None) -> "Reader[T]":
        """Reads a stream; see `holdfast.read_stream`."""
        return read_stream(workflow_id, self, after=after)


def write_stream(key: "str | Stream[Any]", *values: object) -> Wait[None]:
    """Appends values to a stream of this workflow, in one commit, in the order of the calls [S1].

    In a workflow exactly once; in a step at least once: the values of every try are visible, `Item.attempt`
    tells them apart [S2].

    Raises:
        StreamClosed: if the stream has been closed; recorded [S3].
        InvalidName: if the name cannot be one [K1].
        PayloadNotSerializable, PayloadTooLarge: before anything is written [K2].
        NotInWorkflow: outside a workflow.

    Example:
        >>> async def work() -> None:
        ...     await write_stream("progress", "begun", "half way")
    """
    name, _ = name_and_type(key, "stream name", Any)
    found = current_scope("write_stream", INSTEAD)
    if isinstance(found, Branch):
        return call(found, WriteStream(name, values))
    return Wait(lambda: _write_from_step(found, name, values))


class WriteStream(Operation[None]):
    """Values at the end of a stream."""

    __slots__ = ("_payloads", "name", "values")
    kind: ClassVar[str] = "write_stream"

    def __init__(self, key: str, values: tuple[object, ...]) -> None:
        self.name = key
        self.values = values

    def prepare(self, run: Run, step_id: str) -> None:
        self._payloads = _encode(run, self.name, self.values)

    async def perform(self, run: Run, step_id: str) -> Answer:
        point("write.before_commit")
        (answer,) = await run.commit(
            Write(
                owner=run.owner,
                step_id=step_id,
                kind=self.kind,
                name=self.name,
                key=self.name,
                payloads=self._payloads,
            )
        )
        point("write.after_commit")
        return answer

    def conclude(self, run: Run, answer: Answer) -> None:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        if answer.code is Code.CLOSED:
            raise StreamClosed(self.name)


def _encode(run: Run, key: str, values: tuple[object, ...]) -> list[bytes]:
    engine = run.executor.engine
    context = engine.context(run.workflow_id, "stream", key)
    return [engine.codec.encode(value, context) for value in values]


async def _write_from_step(found: StepScope, key: str, values: tuple[object, ...]) -> None:
    run = found.run
    (answer,) = await run.commit(
        Write(
            owner=run.owner,
            step_id=found.step_id,
            within=True,
            token=uuid4(),
            key=key,
            payloads=_encode(run, key, values),
            attempt=found.attempt,
        )
    )
    if answer.code is Code.CLOSED:
        raise StreamClosed(key)


def close_stream(key: "str | Stream[Any]") -> Wait[None]:
    """Ends a stream of this workflow: readers stop after its last value. Closing twice is harmless [S3].

    Raises:
        InvalidName: if the name cannot be one [K1].
        NotInWorkflow: outside a workflow.

    Example:
        >>> async def work() -> None:
        ...     await close_stream("progress")
    """
    name, _ = name_and_type(key, "stream name", Any)
    found = current_scope("close_stream", INSTEAD)
    if isinstance(found, Branch):
        return call(found, CloseStream(name))
    return Wait(lambda: _close_from_step(found, name))


class CloseStream(Operation[None]):
    """The end of a stream."""

    __slots__ = ("name",)
    kind: ClassVar[str] = "close_stream"

    def __init__(self, key: str) -> None:
        self.name = key

    async def perform(self, run: Run, step_id: str) -> Answer:
        point("close.before_commit")
        record = Close(owner=run.owner, step_id=step_id, kind=self.kind, name=self.name, key=self.name)
        (answer,) = await run.commit(record)
        point("close.after_commit")
        return answer

    def conclude(self, run: Run, answer: Answer) -> None:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)


async def _close_from_step(found: StepScope, key: str) -> None:
    await found.run.commit(Close(owner=found.run.owner, step_id=found.step_id, within=True, key=key))


@overload
def read_stream(workflow_id: str, key: Stream[T], *, after: int | None = None) -> "Reader[T]": ...
@overload
def read_stream(workflow_id: str, key: str, *, after: int | None = None, type: type[T]) -> "Reader[T]": ...
@overload
def read_stream(
    workflow_id: str, key: str | Stream[Any], *, after: int | None = None, type: object = ...
) -> "Reader[Any]": ...
def read_stream(
    workflow_id: str, key: str | Stream[Any], *, after: int | None = None, type: object = Any
) -> "Reader[Any]":
    """Reads a workflow's stream from its beginning, or behind offset `after`; in a step.

    Raises:
        NotInWorkflow: outside a step; there, use `Runtime.read_stream`.
    """
    found = current_scope(
        "read_stream", "from outside, use Runtime.read_stream, Client.read_stream or Handle.read"
    )
    if isinstance(found, Branch):
        raise NotInWorkflow("read_stream would not be the same on a replay: read inside a step")
    return open_reader(found.run.executor.engine, workflow_id, key, after=after, type=type)


def open_reader(
    engine: Engine, workflow_id: str, key: "str | Stream[Any]", *, after: int | None, type: object
) -> "Reader[Any]":
    """A reader over an engine. No I/O until it is iterated."""
    name, kind = name_and_type(key, "stream name", type)
    if after is not None and after < -1:
        raise ValueError(
            "after is the offset of the last value already read: 0 or more, or None for the beginning"
        )
    return Reader(engine, _keys.check_workflow_id(workflow_id), name, -1 if after is None else after, kind)


class Reader(AsyncIterator[T], Generic[T]):
    """The values of one stream, in order, as they are committed [S5]. `async for value in reader`.

    It stops when the stream has been closed, or when its workflow is no longer active, after the last value
    [S4]. `closed` and `ended` tell afterwards which it was. Between two values it holds nothing but values
    already read, so that it may be dropped at any time [S9].
    """

    def __init__(self, engine: Engine, workflow_id: str, key: str, after: int, type: object) -> None:
        self.closed: bool = False
        self.ended: bool = False
        self.offset: int = after
        """The offset of the last value given; where another reader goes on with `after=`."""
        self._engine = engine
        self._workflow_id = workflow_id
        self._key = key
        self._type = type
        self._context = engine.context(workflow_id, "stream", key)
        self._bell = _keys.wake_key("stream", workflow_id, key)
        self._end_bell = _keys.wake_key("end", workflow_id)
        self._fetched: deque[StreamValue] = deque()
        self._fetched_to = after
        self._last: Literal["closed", "ended"] | None = None
        self._dropped = False

    def __aiter__(self) -> "Reader[T]":
        return self

    async def __anext__(self) -> T:
        return (await self._next()).value

    async def _next(self) -> Item[T]:
        while not self._fetched and not self.ended and not self._dropped:
            await self._fetch()
        if not self._fetched or self._dropped:
            raise StopAsyncIteration
        found = self._fetched.popleft()
        self.offset = found.offset
        context = self._context
        if found.origin is not None:
            context = self._engine.context(found.origin, "stream", self._key)
        value = self._engine.codec.decode(found.payload, self._type, context)
        return Item(value=value, offset=found.offset, attempt=found.attempt)

    async def _fetch(self) -> None:
        """Waits for the next values, or for the end."""
        if self._last is not None:
            self.ended, self.closed = True, self._last == "closed"
            return
        news = await self._engine.waiters.until((self._bell, self._end_bell), self._look)
        assert news is not None, "a wait without a deadline ends with news"
        if self._dropped:
            return
        if news.status is None:
            raise WorkflowNotFound(self._workflow_id)
        self._fetched.extend(news.values)
        if news.values:
            self._fetched_to = news.values[-1].offset
        if news.complete and (news.closed or not news.status.active):
            self._last = "closed" if news.closed else "ended"

    async def _look(self) -> StreamNews | None:
        if self._dropped:
            return StreamNews([], False, None)
        return await self._engine.lookups.look(StreamLook(self._workflow_id, self._key, self._fetched_to))

    async def collect(self) -> list[T]:
        """Waits for the end of the stream and gives the values not yet read."""
        return [value async for value in self]

    async def items(self) -> AsyncIterator[Item[T]]:
        """The values with their offsets and the attempt that wrote them: `Item(value, offset, attempt)`."""
        while True:
            try:
                yield await self._next()
            except StopAsyncIteration:
                return

    async def aclose(self) -> None:
        """Stops the reader: whoever iterates it, or waits for its next value, gets no further one."""
        self._dropped = True
        self._fetched.clear()
        self._engine.waiters.wake(self._bell)

    async def __aenter__(self) -> "Reader[T]":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<reader of stream {self._key!r} of workflow {self._workflow_id!r} at offset {self.offset}>"
