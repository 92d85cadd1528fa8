"""The library's logger, and named points where tests hook in: to break it, or to wait for it.

A point is a place where a process may die; a signal tells that something has happened. In production both
cost one look at an empty tuple. No metrics and no traces here: those are integrations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["PointHook", "SignalHook", "install", "logger", "point", "signal", "subscribe"]

logger: Final = logging.getLogger("holdfast")

PointHook: TypeAlias = Callable[[str], None]
SignalHook: TypeAlias = Callable[[str, dict[str, object]], None]

_points: tuple[PointHook, ...] = ()
_signals: tuple[SignalHook, ...] = ()


def point(name: str) -> None:
    """Mark a place between two effects, such as `"writer.before_commit"`. A hook may raise, block or kill."""
    if _points:
        for hook in _points:
            hook(name)


def signal(name: str, **facts: object) -> None:
    """Tell whoever subscribed that something has happened. `facts` are ids and counts, never payloads."""
    if _signals:
        for hook in _signals:
            hook(name, facts)


def install(hook: PointHook) -> Callable[[], None]:
    """Call `hook(name)` at every point, until the function that is returned is called."""
    global _points
    _points = (*_points, hook)

    def uninstall() -> None:
        global _points
        _points = tuple(other for other in _points if other is not hook)

    return uninstall


def subscribe(hook: SignalHook) -> Callable[[], None]:
    """Call `hook(name, facts)` at every signal, until the function that is returned is called."""
    global _signals
    _signals = (*_signals, hook)

    def unsubscribe() -> None:
        global _signals
        _signals = tuple(other for other in _signals if other is not hook)

    return unsubscribe
