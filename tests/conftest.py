"""Short names for the fixtures of the plugin."""

from __future__ import annotations

import pytest

from holdfast.testing import plugin
from holdfast.testing.plugin import MakeDatabase


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
