"""Short names for the plugin's fixtures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.testing import plugin


def pytest_configure(config: pytest.Config) -> None:
    # An installed checkout has registered it already, by its entry point.
    if not config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(plugin, "holdfast")


@pytest.fixture
def dsn(holdfast_dsn: str) -> str:
    """A new database with the schema `holdfast` in it."""
    return holdfast_dsn


@pytest.fixture
def empty_dsn(holdfast_database: Callable[..., str]) -> str:
    """A new database with nothing in it."""
    return holdfast_database(migrated=False)
