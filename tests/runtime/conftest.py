"""Signals of runtimes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast import _observe
from tests.runtime.witness import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    """What the processes of this test tell."""
    heard = Signals()
    unsubscribe = _observe.subscribe(heard)
    yield heard
    unsubscribe()
