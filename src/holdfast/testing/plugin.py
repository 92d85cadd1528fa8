"""The pytest plugin: a server for the session and a fresh, migrated database for every test that asks.

All fixtures are synchronous, so they work under pytest-asyncio (strict and auto), under anyio's plugin and in plain
tests. Databases of one's own making are up to `postgres` and `databases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from holdfast.testing.databases import Databases
    from holdfast.testing.postgres import Server


@pytest.fixture(scope="session")
def holdfast_server() -> Iterator[Server]:
    """The PostgreSQL server of this run: `.kind` and `.dsn`."""
    from holdfast.testing.postgres import serve

    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def _holdfast_databases(holdfast_server: Server) -> Iterator[Databases]:
    from holdfast.testing.databases import Databases

    with Databases(holdfast_server.dsn) as databases:
        yield databases


@pytest.fixture
def holdfast_database(_holdfast_databases: Databases) -> Iterator[Callable[..., str]]:
    """Call it for the DSN of a new database, as often as the test needs; `migrated=False` for an empty one."""
    taken: list[str] = []

    def make(*, migrated: bool = True) -> str:
        taken.append(_holdfast_databases.take(migrated=migrated))
        return taken[-1]

    yield make
    for dsn in taken:
        _holdfast_databases.give_back(dsn)


@pytest.fixture
def holdfast_dsn(holdfast_database: Callable[..., str]) -> str:
    """The DSN of a new database with the schema `holdfast` in it."""
    return holdfast_database()
