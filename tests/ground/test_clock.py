"""Time is asked in one room, so that it can be moved."""

from __future__ import annotations

import datetime as dt
import time

from holdfast import _clock


class Stopped:
    def monotonic(self) -> float:
        return 5.0

    def time_ns(self) -> int:
        return 1_500_000_000


def test_the_clock_is_the_machines() -> None:
    before = time.monotonic()
    assert before <= _clock.monotonic() <= time.monotonic()
    assert abs(_clock.utcnow() - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=5)
    assert _clock.utcnow().tzinfo is dt.UTC


def test_the_clock_can_be_moved_and_put_back() -> None:
    uninstall = _clock.install(Stopped())
    assert _clock.monotonic() == 5.0
    assert _clock.utcnow() == dt.datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=dt.UTC)
    uninstall()
    assert _clock.monotonic() != 5.0
