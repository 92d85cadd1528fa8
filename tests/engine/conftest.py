"""What the tests of the engine's machinery share: every event loop, databases, signals to wait for."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from holdfast import _observe
from holdfast._store.connection import Connection


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if sys.version_info >= (3, 12):
        factories["eager"] = eager_loop
    if find_spec("uvloop"):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # uvloop hangs in close() if its warning about an open socket is an error; asyncpg warns of the same.
    quiet = pytest.mark.filterwarnings("ignore:unclosed resource:ResourceWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(quiet)


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """The engine knows no tables."""
    return empty_dsn


@pytest.fixture
async def admin(dsn: str) -> AsyncIterator[Connection]:
    """A connection of the test's own, beside what is tested."""
    connection: Connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def limited_dsn(dsn: str, admin: Connection) -> AsyncIterator[str]:
    """The same database by a log-in that may have one connection at a time."""
    name = f"limited_{secrets.token_hex(8)}"
    await admin.execute(f"create role {name} login password '{name}' connection limit 1")
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    yield urlunsplit(parts._replace(netloc=f"{name}:{name}@{host}"))
    await admin.execute(f"drop role {name}")


class Signals:
    """Remembers what `_observe.signal` told, and waits for more."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[dict[str, object]]] = {}

    def __call__(self, name: str, facts: dict[str, object]) -> None:
        self._queue(name).put_nowait(facts)

    async def next(self, name: str) -> dict[str, object]:
        """The next signal of this name that nobody took yet."""
        async with asyncio.timeout(10):
            return await self._queue(name).get()

    def _queue(self, name: str) -> asyncio.Queue[dict[str, object]]:
        return self._queues.setdefault(name, asyncio.Queue())


@pytest.fixture
def signals() -> Iterator[Signals]:
    heard = Signals()
    unsubscribe = _observe.subscribe(heard)
    yield heard
    unsubscribe()


class FakeClock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)
