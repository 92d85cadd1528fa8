"""Trimming: the values of a stream before an offset are forgotten; offsets go on and are not given again."""

from typing import Any, ClassVar

from holdfast import _keys
from holdfast._engine.engine import Engine
from holdfast._primitives.reading import MOST_OFFSET
from holdfast._run.operation import Operation
from holdfast._run.run import Run
from holdfast._store import streams
from holdfast._store.commits import Answer, Code, Journaled
from holdfast.errors import DatabaseUnavailable, NotRunning, WorkflowNotFound


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


class TrimStream(Operation[int]):
    """Done, then recorded; after a crash in between done again."""

    __slots__ = ("before", "name")
    kind: ClassVar[str] = "trim_stream"

    def __init__(self, key: str, before: int) -> None:
        self.name = key
        self.before = before

    async def perform(self, run: Run, step_id: str) -> Answer:
        engine = run.executor.engine
        try:
            oldest = await trim(engine, run.workflow_id, self.name, self.before)
        except (DatabaseUnavailable, NotRunning) as error:
            raise run.cut_off(error) from None
        output = engine.codec.encode(oldest, engine.context(run.workflow_id, "step", self.name))
        await run.commit(
            Journaled(owner=run.owner, step_id=step_id, kind=self.kind, name=self.name, output=output)
        )
        return Answer(Code.VALUE, output)

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is Code.ERROR or answer.payload is None:
            raise self.failure(run, answer)
        context = run.context(answer, "step", self.name)
        return run.executor.engine.codec.decode(answer.payload, int, context)
