"""Streams: append-only values of a workflow. Writing, closing, trimming; how they are read is in `reading`
and `recorded`.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar, overload

from holdfast import _keys
from holdfast._observe import point
from holdfast._primitives import piping
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._primitives.effects import Effect, commit_within, effect
from holdfast._primitives.reading import Reader, open_reader, span_of
from holdfast._primitives.recorded import RecordedReader
from holdfast._primitives.trimming import TrimStream, check_before, trim
from holdfast._run.context import Branch, StepScope, current_scope
from holdfast._run.operation import Wait, call
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Close, Code, Write
from holdfast.errors import StreamClosed

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
INSTEAD = "only a workflow writes its streams"


class Stream(Channel[T_co], Generic[T_co]):
    """A typed name for a stream of values.

    Example:
        >>> tokens = Stream[str]("tokens")
        >>> tokens
        Stream[str]('tokens')
    """

    __slots__ = ()
    noun = "stream name"

    def write(self, *values: T_co) -> Wait[None]:  # type: ignore[misc]  # see Channel
        """Appends values, all in one commit; see `holdfast.write_stream`."""
        return write_stream(self, *values)

    def close(self) -> Wait[None]:
        """Ends the stream; see `holdfast.close_stream`."""
        return close_stream(self)

    def read(
        self, workflow_id: str, *, after: int | None = None, last: int | None = None, follow: bool = True
    ) -> Reader[T_co]:
        """Reads a stream; see `holdfast.read_stream`."""
        return read_stream(workflow_id, self, after=after, last=last, follow=follow)

    def trim(self, before: int) -> Wait[int]:
        """Forgets the values before an offset; see `holdfast.trim_stream`."""
        return trim_stream(self, before)

    def pipe(
        self, source: AsyncIterable[T_co], *, every: float | timedelta = 0.05, most: int | None = None
    ) -> AsyncIterator[T_co]:  # type: ignore[misc]  # see Channel
        """Passes the items of `source` through, and writes them in their order, several in one commit.

        In a step: an item is written at once if nothing has been written for `every` seconds, else with those
        that come until then, or until there are `most` (100) of them or 1 MiB; meanwhile items go on to the
        loop. When the source ends, all are written before the loop ends; when it raises, or the step is
        cancelled, what has been passed is written before the error goes on. Who leaves the loop early and
        wants to be sure of the same closes it: `async with contextlib.aclosing(tokens.pipe(source)) as …`. As
        with every write from a step, all values of all tries are visible; `Item.attempt` tells them apart
        [S2].

        In workflow code each batch is a durable call, exactly once, and is written before its last item goes
        on. Batches must be the same on a replay, so the clock has no say: they are of `most` items, 1 unless
        given, and of what is left when the source ends or raises; leaving the loop early leaves that
        unwritten. The source runs again on a replay and must give the same items, as everything in workflow
        code must: one that asks the world belongs into a step.

        Raises (at the item after it, or at the end):
            StreamClosed: if the stream has been closed [S3].
            PayloadNotSerializable, PayloadTooLarge: at the item that cannot be written; those before it are.
            NotInWorkflow: outside a workflow and its steps.

        Example:
            >>> async def complete(tokens: Stream[str], model: AsyncIterable[str]) -> str:
            ...     return "".join([token async for token in tokens.pipe(model)])
        """
        piping.check_source(source)
        seconds, count = piping.seconds_between(every), piping.check_most(most)
        found = current_scope("pipe", INSTEAD)
        if isinstance(found, Branch):
            return piping.pipe_by_count(source, count or 1, lambda values: write_stream(self, *values))
        name, run = self.name, found.run
        return piping.pipe_by_time(
            source,
            lambda value: _encode(run, name, (value,))[0],
            lambda payloads: _write_encoded(found, name, payloads),
            every=seconds,
            most=count or piping.MOST_ITEMS,
            name=name,
        )


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
    return effect(WriteStream(name, values), "write_stream", INSTEAD)


class WriteStream(Effect):
    """Values at the end of a stream."""

    __slots__ = ("_payloads", "name", "values")
    kind: ClassVar[str] = "write_stream"

    def __init__(self, key: str, values: tuple[object, ...]) -> None:
        self.name = key
        self.values = values

    def prepare(self, run: Run, step_id: str) -> None:
        self._payloads = _encode(run, self.name, self.values)

    def before_commit(self) -> None:
        point("write.before_commit")

    def after_commit(self) -> None:
        point("write.after_commit")

    def record(self, run: Run, step_id: str, attempt: int = 1) -> Write:
        return Write(
            owner=run.owner,
            step_id=step_id,
            kind=self.kind,
            name=self.name,
            key=self.name,
            payloads=self._payloads,
            attempt=attempt,
        )

    def check(self, answer: Answer) -> None:
        if answer.code is Code.CLOSED:
            raise StreamClosed(self.name)


def _encode(run: Run, key: str, values: Iterable[object]) -> list[bytes]:
    engine = run.executor.engine
    context = engine.context(run.workflow_id, "stream", key)
    return [engine.codec.encode(value, context) for value in values]


async def _write_encoded(found: StepScope, key: str, payloads: list[bytes]) -> None:
    write = WriteStream(key, ())
    write._payloads = payloads
    write.check(await commit_within(found, write))


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
    return effect(CloseStream(name), "close_stream", INSTEAD)


class CloseStream(Effect):
    """The end of a stream."""

    __slots__ = ("name",)
    kind: ClassVar[str] = "close_stream"

    def __init__(self, key: str) -> None:
        self.name = key

    def before_commit(self) -> None:
        point("close.before_commit")

    def after_commit(self) -> None:
        point("close.after_commit")

    def record(self, run: Run, step_id: str, attempt: int = 1) -> Close:
        return Close(owner=run.owner, step_id=step_id, kind=self.kind, name=self.name, key=self.name)


def trim_stream(key: "str | Stream[Any]", before: int) -> Wait[int]:
    """Forgets the values of a stream of this workflow before offset `before`; gives the oldest offset that is
    still kept.

    Offsets go on and are not given again; beyond the end of the stream, only what has been written is
    forgotten. A reader whose next value is gone gets `StreamTrimmed`; one that begins at the beginning begins
    at the oldest value kept; what a reader has fetched already it still gives. Recorded in a workflow, and
    harmless to do twice.

    Raises:
        ValueError: if `before` is negative.
        InvalidName: if the name cannot be one [K1].
        NotInWorkflow: outside a workflow; there, use `Runtime.trim_stream`.

    Example:
        >>> async def work(written: int) -> None:
        ...     await trim_stream("progress", written - 1000)
    """
    name, _ = name_and_type(key, "stream name", Any)
    offset = check_before(before)
    found = current_scope("trim_stream", "from outside, use Runtime.trim_stream or Client.trim_stream")
    if isinstance(found, Branch):
        return call(found, TrimStream(name, offset))
    run = found.run
    return Wait(lambda: trim(run.executor.engine, run.workflow_id, name, offset))


@overload
def read_stream(
    workflow_id: str,
    key: Stream[T],
    *,
    after: int | None = None,
    last: int | None = None,
    follow: bool = True,
) -> Reader[T]: ...
@overload
def read_stream(
    workflow_id: str,
    key: str,
    *,
    after: int | None = None,
    last: int | None = None,
    follow: bool = True,
    type: type[T],
) -> Reader[T]: ...
@overload
def read_stream(
    workflow_id: str,
    key: str | Stream[Any],
    *,
    after: int | None = None,
    last: int | None = None,
    follow: bool = True,
    type: object = ...,
) -> Reader[Any]: ...
def read_stream(
    workflow_id: str,
    key: str | Stream[Any],
    *,
    after: int | None = None,
    last: int | None = None,
    follow: bool = True,
    type: object = Any,
) -> Reader[Any]:
    """Reads a workflow's stream, its own or another's, live until it ends [S4, S5].

    From the beginning, or behind offset `after`, or with `last=k` from the k-th value before the end as it is
    when the reader first looks (0: only what is written from then on). With `follow=False` it gives what is
    there when it first looks, and stops; what is written or closed meanwhile does not matter.

    In workflow code, what is read is recorded in batches of up to 500 values or about 1 MiB: a replay gets
    the same values without reading, and goes on behind them [S8]. Fetching a batch is a durable call, made
    where the loop asks for a value and has none at hand; `anext(reader)` gives it as a `Wait`. One task at a
    time may read. In a step nothing is recorded: each try reads anew.

    Raises:
        ValueError: if `after` or `last` is out of range, or both are given.
        NotInWorkflow: outside a workflow and its steps; there, use `Runtime.read_stream`.
    Raises (when iterated):
        WorkflowNotFound: if there is no such workflow; recorded in workflow code.
        StreamTrimmed: if the value behind `after` is no longer kept.
        RuntimeError: if another task waits for the reader's next value.

    Example:
        >>> async def relay(other: str) -> None:
        ...     async for token in read_stream(other, "tokens", type=str):
        ...         await write_stream("copy", token)
    """
    span = span_of(after, last, follow)
    found = current_scope(
        "read_stream", "from outside, use Runtime.read_stream, Client.read_stream or Handle.read"
    )
    engine = found.run.executor.engine
    if isinstance(found, StepScope):
        return open_reader(engine, workflow_id, key, span, type)
    name, kind = name_and_type(key, "stream name", type)
    return RecordedReader(engine, _keys.check_workflow_id(workflow_id), name, span, kind)
