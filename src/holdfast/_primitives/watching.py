"""Watching events: what a watch is, and watches outside workflow code, where nothing is recorded.

How workflow code watches is in `recorded`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from holdfast import _keys
from holdfast._engine.engine import Engine
from holdfast._run.operation import Wait
from holdfast._store.looks import EventLook, EventNews

T = TypeVar("T")


class Watch(AsyncIterator[T], Generic[T]):
    """The values of one event: the one it has now, then every change. `async for value in watch`.

    A slow watcher skips to the latest value and never goes back. It stops when the workflow is no longer
    active, after the last value [E5]. One task at a time may watch. It holds nothing between two values, so
    that it may be dropped at any time; and a wait for the next value that is given up, by a timeout say, has
    missed nothing: the next one goes on from there.

    Raises (when iterated):
        PayloadDecodeError: if a value does not fit the type; the next one can still be watched.
        RuntimeError: if another task waits for its next value.
    """

    __slots__ = ("_engine", "_over", "_revision", "_type", "_waiting", "bells", "key", "workflow_id")

    def __init__(self, engine: Engine, workflow_id: str, key: str, type: object) -> None:
        self.workflow_id: str = workflow_id
        self.key: str = key
        self.bells: tuple[str, str] = bells_of(workflow_id, key)
        self._engine = engine
        self._type = type
        self._revision = 0
        self._over = False
        self._waiting = False

    def __aiter__(self) -> "Watch[T]":
        return self

    def __anext__(self) -> Wait[T]:
        raise NotImplementedError

    async def _alone(self, wait: Callable[[], Awaitable[T]]) -> T:
        if self._waiting:
            raise self._busy()
        self._waiting = True
        try:
            return await wait()
        finally:
            self._waiting = False

    def _busy(self) -> RuntimeError:
        return RuntimeError(f"{self!r} is watched by another task; one task at a time may watch")

    def _take(self, revision: int, payload: bytes, origin: str | None) -> T:
        """The value of a revision, which is the one to go on from."""
        self._revision = revision
        context = self._engine.context(origin or self.workflow_id, "event", self.key)
        value: T = self._engine.codec.decode(payload, self._type, context)
        return value

    def finish(self) -> None:
        """Nothing follows."""
        self._over = True

    def __repr__(self) -> str:
        return f"<watch of event {self.key!r} of workflow {self.workflow_id!r}>"


class LiveWatch(Watch[T]):
    """A watch that asks the table whenever it needs to."""

    __slots__ = ()

    def __anext__(self) -> Wait[T]:
        return Wait(lambda: self._alone(self._next))

    async def _next(self) -> T:
        if self._over:
            raise StopAsyncIteration
        news = await self._engine.waiters.until(self.bells, self._look)
        assert news is not None, "a wait without a deadline ends with news"
        if news.revision is None:
            self.finish()
            raise StopAsyncIteration
        assert news.payload is not None
        return self._take(news.revision, news.payload, news.origin)

    async def _look(self) -> EventNews | None:
        return await self._engine.lookups.look(EventLook(self.workflow_id, self.key, self._revision))


def bells_of(workflow_id: str, key: str) -> tuple[str, str]:
    """Who waits for an event also waits for the end of its workflow [E2]."""
    return _keys.wake_key("event", workflow_id, key), _keys.wake_key("end", workflow_id)
