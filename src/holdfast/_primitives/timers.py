"""Time and chance, recorded: sleeps that outlast the process, and values that a replay gets again."""

import random as _random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import ClassVar, TypeVar
from uuid import UUID, uuid4

from holdfast import _clock
from holdfast._observe import point
from holdfast._primitives.made import Made
from holdfast._run.context import current_branch
from holdfast._run.operation import Operation, Wait, call, claim
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Code
from holdfast._store.picks import Alternative
from holdfast.config import seconds_of

T = TypeVar("T")
CHANCE = _random.SystemRandom()


def sleep(seconds: float | timedelta) -> Wait[None]:
    """Sleeps; after a crash only the rest of it [W9]. Only in a workflow.

    Raises:
        ValueError: if `seconds` is negative or not finite.
        NotInWorkflow: outside a workflow; there, use `asyncio.sleep`.

    Example:
        >>> async def remind() -> None:
        ...     await sleep(7 * 24 * 3600)
    """
    duration = seconds_of(seconds)
    if duration is None:
        raise TypeError("sleep takes a number of seconds or a timedelta")
    return call(current_branch("sleep", "outside, use asyncio.sleep"), Sleep("sleep", duration))


def sleep_until(moment: datetime) -> Wait[None]:
    """Sleeps until a moment, by the database's clock [W9]. Only in a workflow.

    Raises:
        ValueError: if `moment` has no time zone.
        NotInWorkflow: outside a workflow.

    Example:
        >>> async def remind(moment: datetime) -> None:
        ...     await sleep_until(moment)
    """
    if moment.tzinfo is None:
        raise ValueError("sleep_until needs a moment with a time zone, such as datetime.now(timezone.utc)")
    return call(
        current_branch("sleep_until", "outside, use asyncio.sleep"), Sleep("sleep_until", moment.timestamp())
    )


class Sleep(Operation[None]):
    """A wait for nothing but its deadline; `seconds` since the epoch for sleep_until."""

    __slots__ = ("_kind", "seconds")

    def __init__(self, kind: str, seconds: float) -> None:
        self._kind = kind
        self.seconds = seconds

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self._kind

    @property
    def name(self) -> str:  # type: ignore[override]
        return ""

    def alternative(self, run: Run, step_id: str) -> Alternative:
        return Alternative(kind=self._kind, timeout=self.seconds)

    async def perform(self, run: Run, step_id: str) -> Answer:
        return await claim(run, Claim(step_id=step_id, kind=self._kind, timeout=self.seconds), ())

    def conclude(self, run: Run, answer: Answer) -> None:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)


def now() -> Wait[datetime]:
    """The time, with its zone (UTC), recorded once: a replay gets the same [W2]. Only in a workflow.

    Raises:
        NotInWorkflow: outside a workflow, or inside a step.

    Example:
        >>> async def is_weekend() -> bool:
        ...     return (await now()).weekday() >= 5
    """
    return _once("now", _clock.utcnow, datetime)


def uuid() -> Wait[UUID]:
    """A random UUID, recorded once: a replay gets the same [W2]. Only in a workflow.

    Raises:
        NotInWorkflow: outside a workflow, or inside a step.

    Example:
        >>> async def idempotency_key() -> str:
        ...     return str(await uuid())
    """
    return _once("uuid", uuid4, UUID)


def random() -> Wait[float]:
    """A random number from 0 up to 1, recorded once: a replay gets the same [W2]. Only in a workflow.

    Raises:
        NotInWorkflow: outside a workflow, or inside a step.

    Example:
        >>> async def in_the_sample() -> bool:
        ...     return await random() < 0.01
    """
    return _once("random", CHANCE.random, float)


def _once(kind: str, make: Callable[[], T], type: type[T]) -> Wait[T]:
    return call(current_branch(kind, f"outside, Python's own {kind} will do"), Once(kind, make, type))


class Once(Made[T]):
    """A value of Python's own."""

    __slots__ = ("_draw", "_type", "name")
    kind: ClassVar[str] = "value"

    def __init__(self, name: str, draw: Callable[[], T], type: type[T]) -> None:
        self.name = name
        self._draw = draw
        self._type = type

    @property
    def type(self) -> object:
        return self._type

    async def make(self, run: Run) -> T:
        value = self._draw()
        point("value.before_commit")
        return value
