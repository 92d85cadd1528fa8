"""Transactions: steps whose effect on the database and whose record are one commit: exactly once [W2].

The user's function runs on a connection of the pool. Its COMMIT belongs to the lane of the workflow, so that
it has its place among the workflow's records, and so that nobody's cancellation can leave it half known.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from holdfast import _clock, _keys
from holdfast._backoff import delays
from holdfast._codec import Parameters, names_of_caller
from holdfast._engine.writer import BATCH_DEADLINE
from holdfast._observe import logger, point
from holdfast._primitives.steps import Policy, Step, StepCall, cancellations
from holdfast._run.blocks import in_time
from holdfast._run.context import Branch, StepScope, scope
from holdfast._run.operation import Wait
from holdfast._run.run import Run
from holdfast._store.commits import DONE, Answer, Code, Journaled
from holdfast._store.connection import (
    Connection,
    ConnectionLost,
    Retryable,
    deadline,
    translate_trouble,
)
from holdfast._store.connection import Transaction as Begun
from holdfast._store.steps import JournalRow, load_record, record_transaction
from holdfast.errors import ConfigurationError, DatabaseUnavailable, NotInWorkflow, PayloadCodecError

P = ParamSpec("P")
R = TypeVar("R")


class Transaction(Step[P, R]):
    """A step whose effect and record are one commit; made by `@holdfast.transaction`."""

    kind = "transaction"

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.parameters.check((None, *args), kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Wait[R]:
        """A durable call; only in a workflow, for only there is a connection to give."""
        if not isinstance(scope.get(), Branch):
            raise NotInWorkflow(
                f"transaction {self.name!r} runs in a workflow; outside, call .fn with your own connection"
            )
        return super().__call__(*args, **kwargs)

    def operation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        return TransactionCall(self, args, kwargs)


class TransactionCall(StepCall):
    """One call of a transaction."""

    __slots__ = ()
    kind: ClassVar[str] = "transaction"

    def alternative(self, run: Run, step_id: str) -> None:
        """What has committed could not be withdrawn."""

    async def perform(self, run: Run, step_id: str) -> Answer:
        begun, before = _clock.monotonic(), cancellations()
        if run.posted is not None:
            # Cancelling the wait must not withdraw the record.
            await asyncio.wait([run.posted])
            run.check()
        try:
            return await self._transact(run, step_id, begun)
        except (ConnectionLost, Retryable):
            return await self._after_trouble(run, step_id, begun)
        except asyncio.CancelledError as error:
            if cancellations() > before:
                raise
            run.check()
            return await self._fail(run, step_id, error)
        except Exception as error:
            run.check()
            return await self._fail(run, step_id, error)

    async def _after_trouble(self, run: Run, step_id: str, begun: float) -> Answer:
        """A commit whose reply was lost may have happened: the journal knows. Else the transaction is tried
        again.
        """
        pauses = delays(0.02, 1.0)
        while True:
            run.check()
            row = await run.executor.engine.ask(lambda c: _load(run, c, step_id), insist=True)
            if row is not None:
                return Answer(Code(row.outcome or 0), row.output, origin=row.origin)
            try:
                return await self._transact(run, step_id, begun)
            except (ConnectionLost, Retryable):
                await asyncio.sleep(next(pauses))
            except Exception as error:
                run.check()
                return await self._fail(run, step_id, error)

    async def _transact(self, run: Run, step_id: str, begun: float) -> Answer:
        engine = run.executor.engine
        async with AsyncExitStack() as stack:
            connection = await self._acquire(run, step_id, stack)
            async with deadline(connection, BATCH_DEADLINE):
                transaction = connection.transaction(isolation="read_committed")
                await transaction.start()
            try:
                with translate_trouble(connection):
                    value = await in_time(run, self._body(run, step_id, connection))
                output = engine.codec.encode(value, engine.context(run.workflow_id, "step", self.name))
            except BaseException:
                await _roll_back(connection, transaction)
                raise

            async def finish() -> bool:
                elapsed = _clock.monotonic() - begun
                return await self._commit(run, step_id, connection, transaction, output, elapsed)

            # In the lane, so that this record gets its place in the order of the workflow's calls.
            point("transaction.before_commit")
            recorded = await engine.writer.carry_out(run.workflow_id, finish)
            point("transaction.after_commit")
        return Answer(Code.VALUE, output) if recorded else await self._adopt(run, step_id)

    async def _acquire(self, run: Run, step_id: str, stack: AsyncExitStack) -> Connection:
        """A connection until the stack is left. That there is none is no outcome: it is waited for."""
        pauses = delays(0.02, 1.0)
        while True:
            try:
                return await stack.enter_async_context(run.executor.engine.pool.acquire())
            except (DatabaseUnavailable, ConfigurationError) as error:
                run.check()
                logger.error(
                    "transaction %s %r of workflow %r waits for a connection: %s",
                    step_id,
                    self.name,
                    run.workflow_id,
                    error,
                )
            await asyncio.sleep(next(pauses))

    async def _commit(
        self,
        run: Run,
        step_id: str,
        connection: Connection,
        transaction: Begun,
        output: bytes,
        elapsed: float,
    ) -> bool:
        """Records and commits; False, and rolled back, if the record is not ours to make. Never rolls back
        what may have been committed: the journal knows.
        """
        run.check()
        executor, sql, owner = run.executor.writer.executor, run.executor.engine.sql, run.owner
        async with deadline(connection, BATCH_DEADLINE):
            recorded = await record_transaction(
                connection,
                sql,
                executor,
                run.workflow_id,
                owner.epoch,
                step_id,
                self.name,
                output,
                1,
                elapsed,
            )
        if not recorded:
            await _roll_back(connection, transaction)
            return False
        # What the database refuses now, a deferred constraint perhaps, is for the author of the code to see.
        async with deadline(connection, BATCH_DEADLINE, border=partial(translate_trouble, connection)):
            await transaction.commit()
        return True

    async def _body(self, run: Run, step_id: str, connection: Connection) -> Any:
        token = scope.set(StepScope(run, step_id, 1))
        try:
            async with asyncio.timeout(self.step.policy.timeout):
                return await self.step.fn(connection, *self.args, **self.kwargs)
        finally:
            scope.reset(token)

    async def _adopt(self, run: Run, step_id: str) -> Answer:
        """Recorded by an earlier try, whose outcome counts; or the workflow is lost."""
        row = await run.executor.engine.ask(lambda c: _load(run, c, step_id), insist=True)
        if row is None:
            run.executor.lose(run)
            raise run.gone()
        return Answer(Code(row.outcome or 0), row.output, origin=row.origin)

    async def _fail(self, run: Run, step_id: str, error: BaseException) -> Answer:
        if isinstance(error, PayloadCodecError):
            raise error
        engine = run.executor.engine
        output = engine.codec.encode_error(error, engine.context(run.workflow_id, "error", self.name))
        (answer,) = await run.commit(
            Journaled(
                owner=run.owner,
                step_id=step_id,
                kind=self.kind,
                name=self.name,
                outcome=Code.ERROR,
                output=output,
                attempts=1,
            )
        )
        # What an earlier try has recorded counts, whatever became of this one.
        return Answer(Code.ERROR, output) if answer is DONE else answer


async def _roll_back(connection: Connection, transaction: Begun) -> None:
    """Undoes a transaction; a connection that cannot do even that is ended."""
    if connection.is_closed():
        return
    try:
        async with deadline(connection, BATCH_DEADLINE):
            await transaction.rollback()
    except Exception:
        connection.terminate()


async def _load(run: Run, connection: Connection, step_id: str) -> JournalRow | None:
    return await load_record(connection, run.executor.engine.sql, run.workflow_id, step_id)


def transaction(fn: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Transaction[P, R]:
    """Makes a step of a function that gets an asyncpg connection first, inside a transaction which commits
    together with the step's record: exactly once [W2].

    The isolation is READ COMMITTED. What it raises rolls the transaction back and is recorded. A transaction
    that a lost connection or a deadlock has rolled back is run again.

    Raises:
        ConfigurationError: if it is no async def.

    Example:
        >>> @transaction
        ... async def book(connection: Any, account: int, amount: int) -> None:
        ...     await connection.execute("update accounts set held = $2 where id = $1", account, amount)
    """
    if not inspect.iscoroutinefunction(fn):
        raise ConfigurationError("a transaction is an async def whose first parameter is the connection")
    policy = Policy(1, 0.0, 0.0, 1.0, 0.0, Exception, None)
    name = _keys.check_name(fn.__name__, "step name")
    return Transaction[P, R](fn, name, Parameters(fn, names_of_caller()), policy)
