"""Trimming: the values of a stream before an offset are forgotten; offsets go on and are not given again."""

from typing import ClassVar

from holdfast import _keys
from holdfast._engine.engine import Engine
from holdfast._primitives.made import Made
from holdfast._primitives.reading import MOST_OFFSET
from holdfast._run.run import Run
from holdfast._store import streams
from holdfast.errors import WorkflowNotFound


def check_before(before: int) -> int:
    """An offset before which values are to be forgotten.

    Raises:
        ValueError: if it is negative or larger than any offset.
        TypeError: if it is no whole number.
    """
    if isinstance(before, bool) or not isinstance(before, int):
        raise TypeError(f"before is the offset of the oldest value to keep, not a {type(before).__name__}")
    if not 0 <= before <= MOST_OFFSET:
        raise ValueError("before is the offset of the oldest value to keep: 0 or more")
    return before


async def trim(engine: Engine, workflow_id: str, key: str, before: int) -> int:
    """Forgets; may be done any number of times. The oldest offset that is kept.

    Raises:
        WorkflowNotFound: if there is no such workflow.
    """
    _keys.check_workflow_id(workflow_id)
    oldest = await engine.ask(lambda c: streams.trim_stream(c, engine.sql, workflow_id, key, before))
    if oldest is None:
        raise WorkflowNotFound(workflow_id)
    return oldest


class TrimStream(Made[int]):
    """Done, then recorded; after a crash in between done again."""

    __slots__ = ("before", "name")
    kind: ClassVar[str] = "trim_stream"

    def __init__(self, key: str, before: int) -> None:
        self.name = key
        self.before = before

    @property
    def type(self) -> object:
        return int

    async def make(self, run: Run) -> int:
        return await trim(run.executor.engine, run.workflow_id, self.name, self.before)
