"""The wait loop: nothing is missed, nobody is woken for others, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc

import pytest

from holdfast import _clock
from holdfast._engine.waiters import Waiters

from .conftest import FakeClock


class Box:
    """Stands for a table: a value that is there or not, and how often somebody looked."""

    def __init__(self) -> None:
        self.value: str | None = None
        self.looks = 0
        self.looked = asyncio.Event()

    async def look(self) -> str | None:
        self.looks += 1
        value = self.value
        await asyncio.sleep(0)  # a real look takes a moment, in which bells may ring
        self.looked.set()
        return value

    async def next_look(self) -> None:
        self.looked.clear()
        await self.looked.wait()


async def test_a_value_that_is_there_needs_one_look() -> None:
    waiters, box = Waiters(), Box()
    box.value = "x"
    assert await waiters.until(["k"], box.look) == "x"
    assert box.looks == 1
    assert waiters.statistics().keys == 0


async def test_n2_a_bell_wakes_the_waiters_of_its_key_and_no_others() -> None:
    waiters, one, other = Waiters(), Box(), Box()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(waiters.until(["a"], one.look))
        second = group.create_task(waiters.until(["b"], other.look))
        await one.looked.wait()
        await other.looked.wait()
        one.value = other.value = "x"
        waiters.wake("nobody")
        waiters.wake("a")
        assert await first == "x"
        assert not second.done()
        assert other.looks == 1
        waiters.wake("b")
        assert await second == "x"
    assert waiters.statistics().waiting == waiters.statistics().keys == 0


async def test_n2_a_waiter_is_registered_before_its_first_look() -> None:
    waiters = Waiters()

    async def look() -> bool | None:
        return True if waiters.statistics().keys == 1 else None

    assert await waiters.until(["k"], look) is True


async def test_n2_a_bell_during_a_look_is_followed_by_another_look() -> None:
    waiters, box = Waiters(), Box()

    async def look() -> str | None:
        found = await box.look()
        if box.looks == 1:  # committed and rung after the look has read, before it is back
            box.value = "x"
            waiters.wake("k")
        return found

    async with asyncio.timeout(5):
        assert await waiters.until(["k"], look) == "x"
    assert box.looks == 2


async def test_n2_a_bell_that_means_nothing_is_one_more_look() -> None:
    waiters, box = Waiters(), Box()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(waiters.until(["k"], box.look))
        await box.looked.wait()
        for _ in range(3):
            waiters.wake("k")  # bells between two looks are one
        await box.next_look()
        assert box.looks == 2
        waiting.cancel()


async def test_n2_one_waiter_hears_all_its_keys() -> None:
    waiters = Waiters()
    for key in ("event", "end"):
        box = Box()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(waiters.until(["event", "end", "event"], box.look))
            await box.looked.wait()
            box.value = key
            waiters.wake(key)
            assert await waiting == key
    assert waiters.statistics().keys == 0


async def test_n2_cancel_leaves_no_waiter() -> None:
    waiters, box = Waiters(), Box()
    waiting = [asyncio.ensure_future(waiters.until(["k", str(n)], box.look)) for n in range(50)]
    await box.looked.wait()
    assert waiters.statistics().waiting == 50
    for task in waiting:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert (waiters.statistics().waiting, waiters.statistics().keys) == (0, 0)


async def test_n2_cancel_of_a_waiter_that_was_just_rung_is_not_swallowed() -> None:
    waiters, box = Waiters(), Box()
    waiting = asyncio.ensure_future(waiters.until(["k"], box.look))
    await box.looked.wait()
    await asyncio.sleep(0)  # from the look into the wait
    box.value = "x"
    waiters.wake("k")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert waiters.statistics().keys == 0


async def test_a_look_that_fails_leaves_no_waiter() -> None:
    waiters = Waiters()

    async def look() -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await waiters.until(["k"], look)
    assert (waiters.statistics().waiting, waiters.statistics().keys) == (0, 0)


async def test_w9_a_deadline_in_the_past_gets_one_look() -> None:
    waiters, box = Waiters(), Box()
    assert await waiters.until(["k"], box.look, deadline=_clock.monotonic() - 5) is None
    assert box.looks == 1


async def test_past_the_deadline_there_is_a_last_look_and_then_none() -> None:
    waiters, box = Waiters(), Box()
    started = time.monotonic()
    assert await waiters.until(["k"], box.look, deadline=_clock.monotonic() + 0.2) is None
    assert 0.19 <= time.monotonic() - started < 5
    assert box.looks == 2


async def test_the_last_look_finds_what_no_bell_told() -> None:
    waiters, box = Waiters(), Box()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(waiters.until(["k"], box.look, deadline=_clock.monotonic() + 0.2))
        await box.looked.wait()
        box.value = "x"
    assert waiting.result() == "x"


async def test_a_deadline_may_be_learned_by_looking() -> None:
    waiters, box = Waiters(), Box()
    learned: list[float] = []

    async def look() -> str | None:
        if not learned:
            learned.append(_clock.monotonic() + 0.03)
        return await box.look()

    assert await waiters.until(["k"], look, deadline=lambda: learned[0]) is None
    assert box.looks == 2


async def test_a_deadline_that_moves_is_waited_for_again() -> None:
    waiters, box = Waiters(), Box()
    base = _clock.monotonic()

    def deadline() -> float:  # the database's clock says: not yet
        return base + (0.2 if box.looks < 2 else 0.25)

    assert await waiters.until(["k"], box.look, deadline=deadline) is None
    assert box.looks == 3
    assert _clock.monotonic() - base >= 0.24


async def test_a_test_that_moves_the_clock_ends_waits_by_waking_all() -> None:
    waiters, box, clock = Waiters(), Box(), FakeClock()
    uninstall = _clock.install(clock)
    try:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(waiters.until(["k"], box.look, deadline=clock.now + 3600))
            await box.looked.wait()
            clock.now += 3601
            waiters.wake_all()
        assert waiting.result() is None
        assert box.looks == 2
    finally:
        uninstall()


async def test_n4_ten_thousand_waiters_are_small_and_wake_at_once() -> None:
    waiters, boxes = Waiters(), [Box() for _ in range(10_000)]
    gc.collect()
    tracemalloc.start()
    try:
        tasks = [
            asyncio.ensure_future(waiters.until([f"key {n}", f"end {n}"], box.look))
            for n, box in enumerate(boxes)
        ]
        for box in boxes:
            await box.looked.wait()
        await asyncio.sleep(0)
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / len(tasks)
    finally:
        tracemalloc.stop()
    assert waiters.statistics().waiting == len(tasks)
    for box in boxes:
        box.value = "x"
    started = time.perf_counter()
    waiters.wake_all()
    rung = time.perf_counter() - started
    assert await asyncio.gather(*tasks) == ["x"] * len(tasks)
    took = time.perf_counter() - started
    print(f"{each:.0f} bytes each with its task; rung in {rung:.4f} s, all looked in {took:.3f} s")
    assert each < 4096  # the task, its coroutines and the two keys' texts included
    assert took < 2
    assert all(box.looks == 2 for box in boxes)
    assert (waiters.statistics().waiting, waiters.statistics().keys) == (0, 0)


async def test_many_waiters_of_one_key_come_and_go_at_no_cost() -> None:
    waiters, box = Waiters(), Box()
    tasks = [asyncio.ensure_future(waiters.until(["k"], box.look)) for _ in range(10_000)]
    await box.looked.wait()
    started = time.perf_counter()
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks[::2])
    assert waiters.statistics().waiting == 5000
    box.value = "x"
    waiters.wake("k")
    assert await asyncio.gather(*tasks[1::2]) == ["x"] * 5000
    assert time.perf_counter() - started < 2
