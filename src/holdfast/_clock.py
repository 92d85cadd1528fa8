"""The one room that asks this process for the time, so that tests can move it.

Only for what stays inside one process: whatever two processes compare goes by the database's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "install", "monotonic", "time_ns", "utcnow"]


class Clock(Protocol):
    """A source of time: `monotonic` never goes back, `time_ns` is the wall clock, since 1970."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...


_installed: Clock | None = None


def monotonic() -> float:
    """Seconds that never go back: for deadlines and leases."""
    return time.monotonic() if _installed is None else _installed.monotonic()


def time_ns() -> int:
    """Nanoseconds since 1970, by this machine's wall clock, which may jump."""
    return time.time_ns() if _installed is None else _installed.time_ns()


def utcnow() -> datetime:
    """The wall clock as an aware datetime in UTC."""
    return datetime.fromtimestamp(time_ns() / 1_000_000_000, UTC)


def install(clock: Clock) -> Callable[[], None]:
    """Ask `clock` from now on, for tests; call what is returned to go back to the clock before."""
    global _installed
    previous, _installed = _installed, clock

    def uninstall() -> None:
        global _installed
        _installed = previous

    return uninstall
