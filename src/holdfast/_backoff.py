"""How long to wait before the next try: an exponential series with jitter, bounded.

Only says numbers; who waits, and for what, is elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["Backoff", "delays"]


def delays(
    initial: float, maximum: float, base: float = 2.0, jitter: float = 0.0, rng: random.Random | None = None
) -> Iterator[float]:
    """Seconds to wait before the second try, the third, and so on, without end.

    The n-th is `initial * base**n` and a random part of `jitter` seconds, together never more than `maximum`.
    """
    uniform = (rng or random).uniform
    delay = min(initial, maximum)
    while True:
        yield min(delay + uniform(0, jitter), maximum)
        delay = min(delay * base, maximum)


class Backoff:
    """A series of delays that can begin again, for loops that reconnect.

    Example:
        >>> backoff = Backoff(initial=0.1, maximum=5.0)
        >>> backoff.next(), backoff.next()
        (0.1, 0.2)
        >>> backoff.reset()
        >>> backoff.next()
        0.1
    """

    def __init__(
        self,
        *,
        initial: float = 0.05,
        maximum: float = 5.0,
        base: float = 2.0,
        jitter: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self._initial, self._maximum, self._base, self._jitter, self._rng = (
            initial,
            maximum,
            base,
            jitter,
            rng,
        )
        self.reset()

    def next(self) -> float:
        """Seconds to wait now; longer each time."""
        self.tries += 1
        return next(self._delays)

    def reset(self) -> None:
        """Begin the series again, after a success."""
        self.tries = 0
        self._delays = delays(self._initial, self._maximum, self._base, self._jitter, self._rng)
