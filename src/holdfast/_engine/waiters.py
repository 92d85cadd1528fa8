"""The one place that waits for the database: who waits for what, and the loop in which everybody waits.

Bells carry keys and no data, and may be lost; so a waiter is registered first, then looks, then waits, and
looks again after every bell, after every reconnect of the listener (`wake_all`), and once more at its
deadline. Whatever becomes true after a look rings a bell that finds the waiter registered, and a bell that
rings during a look is remembered: there is no moment in between. A waiter is a few words of memory, and
leaves at once when it is cancelled [N2]. No statement, no task and no connection in this room: the probe
brings its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from holdfast import _clock, _observe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

__all__ = ["Alarm", "Deadline", "Tally", "Waiter", "Waiters", "WaitersStatistics"]

T = TypeVar("T")
Deadline: TypeAlias = "float | Callable[[], float | None] | None"

# Timers of event loops may fire this much before the clock says so; no reason to look twice.
_EARLY: Final = 0.002

# The key of those who wait for a moment only. No bell has it, so none of theirs can be missed.
_MOMENT: Final = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitersStatistics:
    """Who waits now, and how often bells found somebody since the start."""

    waiting: int
    keys: int
    wakes: int


class Alarm:
    """Something one task waits for: rung by anybody, cleared by the one who waits.

    An `asyncio.Event` inside `asyncio.timeout` would do, at ten times the memory, and by cancelling.
    """

    __slots__ = ("_future", "_rung")

    def __init__(self) -> None:
        self._rung = False
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the task that waits, or let its next `wait` return at once. No await, no task."""
        self._rung = True
        self._release()

    def clear(self) -> None:
        """Forget what has rung so far."""
        self._rung = False

    async def wait(self, deadline: float | None = None) -> bool:
        """Return True once it has rung, False once `_clock.monotonic()` has reached `deadline`."""
        while not self._rung:
            remaining = None if deadline is None else deadline - _clock.monotonic()
            if remaining is not None and remaining <= _EARLY:
                return False
            await self.pause(remaining)
        return True

    async def pause(self, seconds: float | None) -> None:
        """Return once it has rung, or after `seconds` of real time, whatever tests do to the clock."""
        if self._rung:
            return
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._release)
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def _release(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Waiter(Alarm):
    """An alarm that is registered under keys for as long as its `with` block lasts."""

    __slots__ = ("_keys", "_waiters")

    def __init__(self, waiters: Waiters, keys: Sequence[str]) -> None:
        super().__init__()
        self._waiters = waiters
        self._keys = keys or (_MOMENT,)

    def __enter__(self) -> Waiter:
        self._waiters._add(self, self._keys)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiters._remove(self, self._keys)


class Tally(Alarm):
    """Counts the bells for some keys: whoever asks later knows whether any has rung. It does not wait."""

    __slots__ = ("_keys", "_waiters", "rings")

    def __init__(self, waiters: Waiters, keys: Sequence[str]) -> None:
        super().__init__()
        self.rings: int = 0
        self._waiters = waiters
        self._keys = keys
        waiters._hear(self, keys)

    def ring(self) -> None:
        """One more."""
        self.rings += 1

    def close(self) -> None:
        """Counts no longer."""
        self._waiters._leave(self, self._keys)


class Waiters:
    """All the waiters of this process, by key.

    Example:
        `value = await waiters.until([key], lambda: load_event(...), deadline=_clock.monotonic() + 30)`
    """

    def __init__(self) -> None:
        # Dicts as ordered sets: who came first is woken first, and leaving costs nothing in a crowd.
        self._by_key: dict[str, dict[Alarm, None]] = {}
        self._waiting = 0
        self._wakes = 0

    async def until(
        self,
        keys: Sequence[str],
        probe: Callable[[], Awaitable[T | None]],
        *,
        deadline: Deadline = None,
    ) -> T | None:
        """Look now, and again whenever one of `keys` rings, until `probe` returns something.

        `deadline` is a value of `_clock.monotonic()`, or a function asked for it after every look: a call
        may learn its deadline from the first look, and from the one at the deadline that by the database's
        clock a little is left. None as the result: the deadline has passed, and a look that began after it
        found nothing. A deadline in the past still gets one look [W9].
        """
        with self.register(keys) as waiter:
            while True:
                waiter.clear()
                looked = _clock.monotonic()
                result = await probe()
                if result is not None:
                    return result
                end = deadline() if callable(deadline) else deadline
                if end is not None and end <= looked + _EARLY:
                    return None
                _observe.signal("waiters.waiting", keys=keys)
                await waiter.wait(end)

    def register(self, keys: Sequence[str]) -> Waiter:
        """A waiter for `with`: bells for one of `keys` reach it inside the block."""
        return Waiter(self, keys)

    def tally(self, *keys: str) -> Tally:
        """Counts the bells for `keys` from now on, until it is closed."""
        return Tally(self, keys)

    def wake(self, key: str) -> None:
        """Wake everybody who waits for `key`: a look into a dict, no await, no task."""
        found = self._by_key.get(key)
        if found is not None:
            self._wakes += len(found)
            for waiter in found:
                waiter.ring()

    def wake_all(self) -> None:
        """Wake everybody, because bells may have been missed [N4]. All look in the same turn of the loop."""
        for key in self._by_key:
            if key != _MOMENT:
                self.wake(key)

    def wake_timers(self) -> None:
        """Wake those who wait for a moment only, because a test has moved the clock."""
        self.wake(_MOMENT)

    def statistics(self) -> WaitersStatistics:
        """Counts, for tests and metrics."""
        return WaitersStatistics(waiting=self._waiting, keys=len(self._by_key), wakes=self._wakes)

    def _add(self, waiter: Waiter, keys: Sequence[str]) -> None:
        self._waiting += 1
        self._hear(waiter, keys)

    def _remove(self, waiter: Waiter, keys: Sequence[str]) -> None:
        self._waiting -= 1
        self._leave(waiter, keys)

    def _hear(self, alarm: Alarm, keys: Sequence[str]) -> None:
        for key in keys:
            self._by_key.setdefault(key, {})[alarm] = None

    def _leave(self, alarm: Alarm, keys: Sequence[str]) -> None:
        for key in keys:
            found = self._by_key.get(key)
            if found is None or alarm not in found:  # the same key given twice
                continue
            del found[alarm]
            if not found:
                del self._by_key[key]
