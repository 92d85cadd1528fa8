"""Calls that do something and are done: sending, publishing, writing, closing, answering.

From workflow code an effect is a durable call: exactly once. From the body of a step the same record goes
without a row in the journal, known by a token: at least once, for the step may be tried again.
"""

from uuid import uuid4

from msgspec.structs import replace

from holdfast._run.context import Branch, StepScope, current_scope
from holdfast._run.operation import Operation, Wait, call
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code, Journaled


class Effect(Operation[None]):
    """Something that one record does."""

    __slots__ = ()

    def record(self, run: Run, step_id: str, attempt: int = 1) -> Journaled:
        """What is committed; `prepare` has encoded its payloads."""
        raise NotImplementedError

    def check(self, answer: Answer) -> None:
        """Raises what became of it, if the database has refused it."""

    def before_commit(self) -> None:
        """A fault point, in workflow code."""

    def after_commit(self) -> None:
        """Another."""

    async def perform(self, run: Run, step_id: str) -> Answer:
        self.before_commit()
        (answer,) = await run.commit(self.record(run, step_id))
        self.after_commit()
        return answer

    def conclude(self, run: Run, answer: Answer) -> None:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        self.check(answer)


def effect(made: Effect, verb: str, instead: str) -> Wait[None]:
    """The call of an effect, from where the running code is.

    Raises:
        NotInWorkflow: outside a workflow and its steps.
    """
    found = current_scope(verb, instead)
    return call(found, made) if isinstance(found, Branch) else within(found, made)


def within(found: StepScope, made: Effect) -> Wait[None]:
    """The call of an effect from a step's body."""
    return Wait(lambda: _do_within(found, made))


async def _do_within(found: StepScope, made: Effect) -> None:
    made.prepare(found.run, found.step_id)
    made.check(await commit_within(found, made))


async def commit_within(found: StepScope, made: Effect) -> Answer:
    """Commits a prepared effect of a step's body; what became of it."""
    record = made.record(found.run, found.step_id, found.attempt)
    (answer,) = await found.run.commit(replace(record, within=True, token=uuid4()))
    return answer
