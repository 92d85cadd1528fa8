"""Delays grow, stay below their maximum, and can begin again [W6]."""

from __future__ import annotations

import random
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from holdfast._backoff import Backoff, delays

SECONDS = st.floats(0, 1e6)


def test_w6_delays_are_exponential_up_to_the_maximum() -> None:
    assert list(islice(delays(0.1, 1.0, base=2), 6)) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_w6_jitter_is_repeatable_with_a_seed() -> None:
    one = list(islice(delays(0.1, 30, 2, 0.1, random.Random(7)), 5))
    two = list(islice(delays(0.1, 30, 2, 0.1, random.Random(7)), 5))
    assert one == two
    assert all(
        bare <= delay <= bare + 0.1 for bare, delay in zip([0.1, 0.2, 0.4, 0.8, 1.6], one, strict=True)
    )


@given(initial=SECONDS, maximum=SECONDS, base=st.floats(1, 1e9), jitter=SECONDS, seed=st.integers())
def test_w6_no_delay_is_over_the_maximum_or_below_nothing(
    initial: float, maximum: float, base: float, jitter: float, seed: int
) -> None:
    made = islice(delays(initial, maximum, base, jitter, random.Random(seed)), 400)
    assert all(0 <= delay <= maximum for delay in made)


def test_a_backoff_begins_again() -> None:
    backoff = Backoff(initial=0.5, maximum=8)
    assert [backoff.next(), backoff.next(), backoff.tries] == [0.5, 1.0, 2]
    backoff.reset()
    assert [backoff.tries, backoff.next()] == [0, 0.5]
