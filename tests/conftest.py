"""Short names for the fixtures of the plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from holdfast import _observe
from holdfast._store.connection import Connection
from holdfast.testing import plugin
from holdfast.testing.plugin import MakeDatabase

from .processes import Points, Processes, Waits, connect


def pytest_configure(config: pytest.Config) -> None:
    # An installed holdfast brings it by its entry point; a bare checkout does not.
    if not config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(plugin, "holdfast")


@pytest.fixture
def dsn(holdfast_dsn: str) -> str:
    """A new database with the schema `holdfast` in it."""
    return holdfast_dsn


@pytest.fixture
def empty_dsn(holdfast_database: MakeDatabase) -> str:
    """A new database with nothing in it."""
    return holdfast_database(migrated=False)


@pytest.fixture
async def processes(dsn: str) -> AsyncIterator[Processes]:
    """Makes runtimes and clients on the test's database, and ends them."""
    async with Processes(dsn) as made:
        yield made


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Connection]:
    """A connection of the test's own, beside what is tested."""
    connection = await connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
def waits() -> Iterator[Waits]:
    """What processes of this test wait for."""
    seen = Waits()
    unsubscribe = _observe.subscribe(seen)
    yield seen
    unsubscribe()


@pytest.fixture
def points() -> Iterator[Points]:
    """Which points are passed."""
    passed = Points()
    uninstall = _observe.install(passed)
    yield passed
    uninstall()
