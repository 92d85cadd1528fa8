"""How a client or a runtime comes to life and ends: everything long-lived in one task group, under one task.

The group lives in a task of its own, so that a client may be entered in one task and left in another, as test
fixtures and ASGI servers do.
"""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

from holdfast._engine.engine import Engine
from holdfast._observe import logger
from holdfast.config import resolve_dsn
from holdfast.errors import DatabaseUnavailable, NotRunning

if TYPE_CHECKING:
    from holdfast.embedded import Embedded


class Lifecycle:
    """Something inert until entered. Subclasses say what is built and what runs."""

    def __init__(self, dsn: str | None) -> None:
        self._dsn = resolve_dsn(dsn)
        self._engine: Engine | None = None
        self._main: asyncio.Task[None] | None = None
        self._stopping: asyncio.Event | None = None
        self._embedded: Embedded | None = None

    def _build(self, dsn: str) -> Engine:
        """The engine for a database."""
        raise NotImplementedError

    async def _serve(self, started: asyncio.Event, stopping: asyncio.Event) -> None:
        """Runs everything: sets `started` once it can be used, returns after `stopping`."""
        raise NotImplementedError

    @property
    def engine(self) -> Engine:
        """The running engine.

        Raises:
            NotRunning: before the object has been entered, and after it has been left.
        """
        if self._engine is None:
            raise NotRunning(f"this {type(self).__name__} is not running; use it inside `async with`")
        return self._engine

    async def __aenter__(self) -> Self:
        if self._main is not None:
            raise NotRunning(f"this {type(self).__name__} is running already; make another one")
        dsn = self._dsn or await self._embed()
        try:
            await self._enter(self._build(dsn))
        except BaseException:
            self._engine = None
            await self._release_embedded()
            raise
        return self

    async def _enter(self, engine: Engine) -> None:
        try:
            await engine.prepare()
            await self._start(engine)
        except BaseException:
            await engine.aclose()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        main, self._main = self._main, None
        assert main is not None
        assert self._stopping is not None
        self._stopping.set()
        try:
            await _finish(main)
        finally:
            self._engine = None
            await self._release_embedded()

    async def _start(self, engine: Engine) -> None:
        started, self._stopping = asyncio.Event(), asyncio.Event()
        self._engine = engine
        # The one task without a group: it is the group's.
        main = asyncio.create_task(
            self._serve(started, self._stopping), name=f"holdfast {type(self).__name__.lower()}"
        )
        main.add_done_callback(self._ended)
        begun = asyncio.create_task(started.wait(), name="holdfast start")
        try:
            patience = engine.settings.database_patience
            done, _ = await asyncio.wait({main, begun}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            main.cancel()
            await asyncio.wait({main})
            raise
        finally:
            begun.cancel()
        if main in done:
            await main
        if not done:
            main.cancel()
            await asyncio.wait({main})
            raise DatabaseUnavailable(f"no listening connection to the database for {patience:g} s")
        self._main = main

    def _ended(self, main: "asyncio.Task[None]") -> None:
        """A failure of the machinery is a bug: say so at once, and let every call say that nothing runs."""
        if not main.cancelled() and main.exception() is not None and self._main is main:
            logger.critical(
                "holdfast has stopped working because of an internal error", exc_info=main.exception()
            )
            self._engine = None

    async def _embed(self) -> str:
        """The DSN of the embedded PostgreSQL, started if need be."""
        from holdfast.embedded import Embedded

        embedded = Embedded()
        starting = asyncio.create_task(asyncio.to_thread(embedded.acquire), name="holdfast embedded")
        try:
            dsn = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on all the same: wait for the server that it starts, or nobody would stop it.
            await _finish_cancelled(starting)
            if not starting.cancelled() and starting.exception() is None:
                await asyncio.to_thread(embedded.release)
            raise
        self._embedded = embedded
        return dsn

    async def _release_embedded(self) -> None:
        if self._embedded is not None:
            embedded, self._embedded = self._embedded, None
            await asyncio.to_thread(embedded.release)


async def _finish_cancelled(task: "asyncio.Task[str]") -> None:
    """Waits for the end of something that cannot be cancelled, whatever comes."""
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            pass  # the caller raises the first one


async def _finish(main: "asyncio.Task[None]") -> None:
    """Waits for the end through a cancellation, which goes on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not main.done():
        try:
            await asyncio.wait({main})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    await main
