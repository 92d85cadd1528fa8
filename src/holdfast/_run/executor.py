"""Runs workflows as tasks: takes them, begins or recovers them, records how they end, and gives them back.

Everything a workflow's code is about lies above and below: the durable calls in `operation`, the order of
their completions in `turns`, ownership in `leases`. This room has the life of a run, from claim to outcome.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextvars import Context, copy_context

from holdfast import _keys, _observe
from holdfast._codec import Codec
from holdfast._engine.engine import Engine
from holdfast._engine.waiters import Waiters
from holdfast._engine.writer import Writer
from holdfast._observe import logger
from holdfast._run.context import Branch, scope
from holdfast._run.leases import Lease
from holdfast._run.registry import Registry
from holdfast._run.run import Run, mismatch
from holdfast._run.turns import own_timer
from holdfast._store import steps, workflows
from holdfast._store.commits import Code, End, Owner
from holdfast._store.connection import Connection
from holdfast._store.steps import JournalRow
from holdfast._store.workflows import Claimed
from holdfast.errors import DatabaseUnavailable, NotRunning, PayloadError, RecordRejected
from holdfast.types import Status

MOST_CLAIMED = 500
"""Workflows taken in one claim, and journals read in one query."""
STOP_PATIENCE = 0.5
"""Seconds that stopped runs get to leave before they are left behind."""
RELEASE_PATIENCE = 1.0
"""Seconds that giving back may take, before it is left to whoever finds this executor dead."""

Outcome = tuple[Status, bytes | None]


class Executor:
    """The runs of this process. `run` is a task of the runtime's group."""

    def __init__(self, engine: Engine, registry: Registry, name: str, app_version: str | None) -> None:
        self.engine = engine
        self.registry = registry
        self.codec: Codec = engine.codec
        self.runs: dict[str, Run] = {}
        self.lease: Lease = Lease(engine, self, name, app_version)
        engine.heart = self.lease
        self._names = [definition.name for definition in registry]
        self._timeouts = [definition.timeout for definition in registry]
        self._work_key = _keys.wake_key("executor", engine.id)
        self._tasks: set[asyncio.Task[None]] = set()
        self._parked: dict[str, Run] = {}
        self._context: Context | None = None
        self._closing = False
        self._claims = 0
        self._left = asyncio.Event()

    @property
    def writer(self) -> Writer:
        """Where records of runs go."""
        return self.engine.writer

    @property
    def waiters(self) -> Waiters:
        """Where runs wait."""
        return self.engine.waiters

    # The life of the executor

    async def run(self, started: asyncio.Event) -> None:
        """Takes and runs workflows until cancelled, the first once the engine has `started`. Runs are not in
        the group: one that does not let itself be stopped must not keep the process from leaving.
        """
        self._context = copy_context()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.lease.recover(), name="holdfast recovery")
                group.create_task(self._watch_cancelling(), name="holdfast cancelling")
                if self._names:
                    group.create_task(self._dispatch(started), name="holdfast dispatcher")
        finally:
            self.lost()

    async def aclose(self) -> None:
        """Leaves: lets runs go on for `Settings.drain` seconds, then stops them and gives them back [W11]."""
        self._closing = True
        await self._until_left(self.engine.settings.drain)
        self.lost()
        await self._until_left(STOP_PATIENCE)
        if self.runs:
            logger.warning("%d workflows did not stop in time and are left behind", len(self.runs))
        try:
            async with asyncio.timeout(RELEASE_PATIENCE):
                await self.lease.release()
        except (TimeoutError, DatabaseUnavailable):
            logger.warning(
                "the database did not answer; workflows that ran here go on when their executor is found dead"
            )

    def lost(self) -> None:
        """Stops all runs; none of them writes anything any more [W11, W14]."""
        self._parked.clear()
        for run in tuple(self.runs.values()):
            run.stop()

    def renewed(self) -> None:
        """There is a new lease: looks for work to take."""
        self.waiters.wake(self._work_key)

    async def _until_left(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self.runs:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass

    # Taking workflows

    async def _dispatch(self, started: asyncio.Event) -> None:
        await started.wait()
        keys = [self._work_key, *(_keys.wake_key("work", name) for name in self._names)]
        while True:
            claimed = await self.waiters.until(keys, self._claim)
            if claimed:
                await self._begin(claimed)

    async def _claim(self) -> list[Claimed] | None:
        executor = self.lease.executor
        if executor is None or self._closing:
            return None

        tried = False

        async def claim(connection: Connection) -> list[Claimed]:
            # A first try whose reply was lost may have taken workflows that nobody runs now.
            nonlocal tried
            if executor != self.lease.executor:
                return []
            self._claims += 1
            running = [*self.runs, *self._parked] if tried else None
            tried = True
            return await workflows.claim_workflows(
                connection,
                self.engine.sql,
                executor,
                self._claims,
                self._names,
                self._timeouts,
                MOST_CLAIMED,
                running,
            )

        claimed = await self.engine.ask(claim, insist=True)
        if executor != self.lease.executor:
            return None  # what was taken was taken by an executor that is no more: it is freed with it
        return claimed or None

    async def _begin(self, claimed: Sequence[Claimed]) -> None:
        """Runs what has just been taken; what ran before reads its journal, all of them in one query [W3]."""
        executor = self.lease.executor
        ids = [found.id for found in claimed if found.epoch > 1]

        async def read(connection: Connection) -> dict[str, list[JournalRow]]:
            return await steps.list_journals(connection, self.engine.sql, ids)

        journals = await self.engine.ask(read, insist=True) if ids else {}
        if executor != self.lease.executor or self._closing:
            return
        for found in claimed:
            run = Run(
                self, self.registry[found.name], Owner(found.id, found.epoch), journals.get(found.id, ())
            )
            self.launch(run, found.input, found.remaining, cancelling=found.cancelling)
        # Who was asked to end between the claim and now was not found here when the bell rang.
        self.waiters.wake(_keys.wake_key("executor", str(executor)))

    def launch(self, run: Run, data: bytes, remaining: float | None, *, cancelling: bool = False) -> None:
        """Begins a run, unless it is here already; `remaining`: seconds until its own timeout."""
        known = self.runs.get(run.workflow_id)
        if self._closing or (known is not None and known.owner.epoch >= run.owner.epoch):
            return
        if known is not None:
            known.stop()  # it does not know yet that it has been taken over
        self.runs[run.workflow_id] = run
        self._spawn(self._live(run, data, remaining), f"workflow {run.workflow_id}")
        if cancelling:
            if remaining is not None and remaining <= 0:
                run.cause = _own_timeout()
            self._cancel_recovered(run)

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        """Runs something in a context of its own, so that a child is not numbered as a task of its parent."""
        assert self._context is not None, "the executor has not started"
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("%s has failed inside holdfast", task.get_name(), exc_info=error)

    def _cancel_recovered(self, run: Run) -> None:
        """A workflow that was being cancelled when its process died: cancelled at the same place, or after
        its replay.
        """
        if any(row.outcome == Code.INTERRUPTED for row in run.journal.values()):
            run.cancelling = run.cancel_asked = True
            run.interrupted = set()
            self.limit_cleanup(run)
        elif run.journal:
            run.cancel_asked = True
            run.turns.when_replayed(run.cancel)
        else:
            run.cancel()

    # The life of a run

    async def _live(self, run: Run, data: bytes, remaining: float | None) -> None:
        scope.set(Branch(run))
        task = asyncio.current_task()
        assert task is not None
        run.adopt(task)
        timer = None
        if remaining is not None:
            timer = own_timer(max(remaining, 0.0), self._time_out, run)
        try:
            outcome = await self._outcome(run, data)
            scope.set(None)
            if outcome is not None:
                run.close()
                await self._end(run, outcome)
        except asyncio.CancelledError:
            # Only stopping reaches a run that is over, and the end of the loop.
            if not run.stopped:
                raise
        except NotRunning:
            run.stop()
        finally:
            if timer is not None:
                timer.cancel()
            run.over = True
            if self.runs.get(run.workflow_id) is run:
                del self.runs[run.workflow_id]
            if run.parked is not None and not self._closing:
                self._parked[run.workflow_id] = run
                self._end_parked()
            self._left.set()

    async def _outcome(self, run: Run, data: bytes) -> Outcome | None:
        """Runs the workflow's code; None if it has no outcome here."""
        definition = run.definition
        if run.cancelling and not run.journal:
            return self._cancelled(run)
        value: object = None
        failure: BaseException | None = None
        try:
            args, kwargs = self.codec.decode_call(
                data, definition.parameters, self.engine.context(run.workflow_id, "input", definition.name)
            )
            value = await definition.fn(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failure = error
        if run.stopped or run.over:
            return None
        if run.turns.unreplayed is not None and not run.cancelling:
            run.park(mismatch(run, run.journal[run.turns.unreplayed], "the end of the workflow"))
            return None
        if run.cancelling:
            return self._cancelled(run)
        if failure is None:
            try:
                return Status.SUCCESS, self.codec.encode(
                    value, self.engine.context(run.workflow_id, "output")
                )
            except PayloadError as error:
                failure = error
        return Status.ERROR, self.codec.encode_error(failure, self.engine.context(run.workflow_id, "error"))

    def _cancelled(self, run: Run) -> Outcome:
        if run.cause is None:
            return Status.CANCELLED, None
        return Status.CANCELLED, self.codec.encode_error(
            run.cause, self.engine.context(run.workflow_id, "error")
        )

    async def _end(self, run: Run, outcome: Outcome) -> None:
        """Records the outcome [W7]; without a database the workflow stays PENDING and is recovered later."""
        status, output = outcome
        _observe.point("finish.before_commit")
        try:
            await self.writer.commit(End(owner=run.owner, status=status.code, output=output))
        except DatabaseUnavailable:
            logger.error(
                "the outcome of workflow %r could not be recorded; it will be recovered", run.workflow_id
            )
            self.give_up()
        except RecordRejected as error:
            refused = self.codec.encode_error(error, self.engine.context(run.workflow_id, "error"))
            await self.writer.commit(End(owner=run.owner, status=Status.ERROR.code, output=refused))
        else:
            _observe.point("finish.after_commit")
            _observe.signal("workflow.finished", workflow_id=run.workflow_id, status=status)
            if status is Status.CANCELLED:
                # Of a child whose start was on its way, the cancelling of the family knew nothing.
                await self._cancel_family(run)

    def give_up(self) -> None:
        """The database cannot be written to: begins anew as another executor, once it can be."""
        self.lease.lose("records could not be committed")

    def lose(self, run: Run) -> None:
        """The database says that this executor no longer owns the workflow [W14]."""
        logger.warning("workflow %r now belongs to another executor; it is stopped here", run.workflow_id)
        run.stop()

    # Cancelling

    async def cancel(self, workflow_id: str) -> bool:
        """Asks a workflow and its children to end [W10]; was it active?"""

        async def ask(connection: Connection) -> dict[str, int | None]:
            return await workflows.cancel_workflow(
                connection, self.engine.sql, workflow_id, self.engine.channel
            )

        active = await self.engine.ask(ask)
        self.cancel_here(active)
        return workflow_id in active

    def cancel_here(self, ids: Iterable[str]) -> None:
        """Cancels those workflows that run in this process."""
        for workflow_id in ids:
            run = self.runs.get(workflow_id) or self._parked.get(workflow_id)
            if run is not None:
                run.cancel()
        self._end_parked()

    def _end_parked(self) -> None:
        """A workflow whose code does not match its journal can only be ended without its code."""
        for run in (*self._parked.values(), *(run for run in self.runs.values() if run.stuck)):
            if run.cancel_asked:
                self._parked.pop(run.workflow_id, None)
                run.stop()
                self._spawn(self._end(run, self._cancelled(run)), f"end of workflow {run.workflow_id}")

    def limit_cleanup(self, run: Run) -> None:
        """Gives a cancelled run `Settings.cleanup_time` seconds to clean up."""
        own_timer(self.engine.settings.cleanup_time, self._overdue, run)

    def _overdue(self, run: Run) -> None:
        if run.over or run.stopped:
            return
        logger.warning(
            "workflow %r was cancelled and did not end in time; it is ended without its clean-up",
            run.workflow_id,
        )
        outcome = self._cancelled(run)
        run.close()
        self._spawn(self._end(run, outcome), f"end of workflow {run.workflow_id}")

    def _time_out(self, run: Run) -> None:
        """The workflow's own timeout: cancelled like by hand, its children too."""
        run.cancel(_own_timeout())
        self._spawn(self._cancel_family(run), f"timeout of workflow {run.workflow_id}")

    async def _cancel_family(self, run: Run) -> None:
        try:
            await self.cancel(run.workflow_id)
        except (DatabaseUnavailable, NotRunning):
            logger.warning("the children of workflow %r could not be cancelled with it", run.workflow_id)

    async def _watch_cancelling(self) -> None:
        """Hears of workflows that another process has asked to end."""
        while True:
            executor = self.lease.executor
            keys = [self._work_key, _keys.wake_key("executor", str(executor or 0))]

            async def look(watched: int | None = executor) -> list[str] | None:
                if watched != self.lease.executor:
                    return []
                return await self._list_cancelling(watched)

            self.cancel_here(await self.waiters.until(keys, look) or ())

    async def _list_cancelling(self, executor: int | None) -> list[str] | None:
        if executor is None:
            return None

        async def ask(connection: Connection) -> list[str]:
            return await workflows.list_cancelling(connection, self.engine.sql, executor)

        found = await self.engine.ask(ask, insist=True)
        return [workflow_id for workflow_id in found if self._may_cancel(workflow_id)] or None

    def _may_cancel(self, workflow_id: str) -> bool:
        run = self.runs.get(workflow_id) or self._parked.get(workflow_id)
        return run is not None and not run.cancel_asked


def _own_timeout() -> TimeoutError:
    return TimeoutError("the workflow's own timeout has passed")
