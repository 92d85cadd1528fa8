"""Signals of runtimes."""

from tests.runtime.conftest import signals

__all__ = ["signals"]
