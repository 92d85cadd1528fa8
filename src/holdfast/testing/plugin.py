"""The pytest plugin: a server for the session, and a fresh, migrated database for every test that asks.

All fixtures are synchronous: they work under pytest-asyncio (strict and auto), under anyio's plugin and in
plain tests alike. This module is imported in every run of pytest, so the rest is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from holdfast.testing.databases import Databases
    from holdfast.testing.postgres import Server

__all__ = ["MakeDatabase", "holdfast_database", "holdfast_dsn", "holdfast_server"]


class MakeDatabase(Protocol):
    """What the fixture `holdfast_database` is."""

    def __call__(self, *, migrated: bool = True) -> str:
        """The DSN of a new database, with the schema `holdfast` in it unless `migrated` is false."""
        ...


@pytest.fixture(scope="session")
def holdfast_server() -> Iterator[Server]:
    """The PostgreSQL server of this run, `.kind` and `.dsn`; `HOLDFAST_TEST_SERVER` chooses which."""
    from holdfast.testing.postgres import serve

    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def _holdfast_databases(holdfast_server: Server) -> Iterator[Databases]:
    from holdfast.testing.databases import Databases

    with Databases(holdfast_server.dsn) as databases:
        yield databases


@pytest.fixture
def holdfast_database(_holdfast_databases: Databases) -> Iterator[MakeDatabase]:
    """Call it for the DSN of a new database, as often as the test needs; they are dropped after it."""
    taken: list[str] = []

    def make(*, migrated: bool = True) -> str:
        taken.append(_holdfast_databases.take(migrated=migrated))
        return taken[-1]

    yield make
    for dsn in taken:
        _holdfast_databases.give_back(dsn)


@pytest.fixture
def holdfast_dsn(holdfast_database: MakeDatabase) -> str:
    """The DSN of a new database with the schema `holdfast` in it."""
    return holdfast_database()
