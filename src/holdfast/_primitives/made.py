"""Calls whose value is made in this process, then recorded; after a crash in between it is made again."""

from typing import TypeVar

from holdfast._run.operation import Operation
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code, Journaled

T = TypeVar("T")


class Made(Operation[T]):
    """A value that `make` brings about, of a type that its subclass or its maker knows."""

    __slots__ = ()

    @property
    def type(self) -> object:
        """What the recorded value is decoded as."""
        raise NotImplementedError

    async def make(self, run: Run) -> T:
        """The value; called when the journal has none."""
        raise NotImplementedError

    async def perform(self, run: Run, step_id: str) -> Answer:
        engine = run.executor.engine
        value = await self.make(run)
        output = engine.codec.encode(value, engine.context(run.workflow_id, "step", self.name))
        await run.commit(
            Journaled(owner=run.owner, step_id=step_id, kind=self.kind, name=self.name, output=output)
        )
        return Answer(Code.VALUE, output)

    def conclude(self, run: Run, answer: Answer) -> T:
        if answer.code is Code.ERROR or answer.payload is None:
            raise self.failure(run, answer)
        context = run.context(answer, "step", self.name)
        value: T = run.executor.engine.codec.decode(answer.payload, self.type, context)
        return value
