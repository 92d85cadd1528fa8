"""Bare connections for a caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from holdfast._store.connection import Connection
from tests.callers.shop import connections
from tests.runtime.conftest import signals

__all__ = ["signals"]

Make = Callable[[], Awaitable[Connection]]


@pytest.fixture
async def caller(dsn: str) -> AsyncIterator[Connection]:
    """A connection that knows nothing of the library."""
    async with connections(dsn) as make:
        yield await make()


@pytest.fixture
async def callers(dsn: str) -> AsyncIterator[Make]:
    """Makes several of them."""
    async with connections(dsn) as make:
        yield make
