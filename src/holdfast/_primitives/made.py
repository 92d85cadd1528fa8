"""Calls whose value is made in this process, then recorded; after a crash in between it is made again."""

from typing import ClassVar, TypeVar

from holdfast._run.operation import Operation
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code, Journaled
from holdfast.errors import DatabaseUnavailable, NotRunning

T = TypeVar("T")


class Made(Operation[T]):
    """A value that `make` brings about, of a type that its subclass or its maker knows."""

    __slots__ = ()
    outcomes: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors of `make` that are an outcome of the call, and recorded as such."""

    @property
    def type(self) -> object:
        """What the recorded value is decoded as."""
        raise NotImplementedError

    async def make(self, run: Run) -> T:
        """The value; called when the journal has none."""
        raise NotImplementedError

    async def perform(self, run: Run, step_id: str) -> Answer:
        engine, code = run.executor.engine, Code.VALUE
        try:
            value = await self._made(run)
            output = engine.codec.encode(value, engine.context(run.workflow_id, "step", self.name))
        except self.outcomes as error:
            code = Code.ERROR
            output = engine.codec.encode_error(error, engine.context(run.workflow_id, "error", self.name))
        await run.commit(
            Journaled(
                owner=run.owner, step_id=step_id, kind=self.kind, name=self.name, outcome=code, output=output
            )
        )
        return Answer(code, output)

    async def _made(self, run: Run) -> T:
        while True:
            try:
                return await self.make(run)
            except DatabaseUnavailable:
                run.check()  # nobody inside a workflow may see that: it is tried again, as long as this runs
            except NotRunning as error:
                raise run.cut_off(error) from None

    def conclude(self, run: Run, answer: Answer) -> T:
        if answer.code is Code.ERROR or answer.payload is None:
            raise self.failure(run, answer)
        context = run.context(answer, "step", self.name)
        value: T = run.executor.engine.codec.decode(answer.payload, self.type, context)
        return value
