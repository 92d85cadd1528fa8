"""Runs workflows as tasks: takes them, begins or recovers them, records how they end, and gives them back.

Everything a workflow's code is about lies above and below: the durable calls in `operation`, the order of
their completions in `turns`, ownership in `leases`, taking in `claiming`, the code's outcome in `endings`.
This room has the life of a run, from its launch to its record.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextvars import Context, copy_context

from holdfast import _keys, _observe
from holdfast._engine.engine import Engine
from holdfast._engine.waiters import Waiters
from holdfast._engine.writer import Writer
from holdfast._observe import logger
from holdfast._run.claiming import KINDS, Claiming
from holdfast._run.context import Branch, scope
from holdfast._run.endings import Ending, cancelled, failed, live_out
from holdfast._run.leases import Lease
from holdfast._run.registry import Registry
from holdfast._run.run import Run
from holdfast._run.settling import Settling
from holdfast._run.turns import own_timer
from holdfast._store import workflows
from holdfast._store.commits import Answer, Code, Continue, Owner
from holdfast._store.connection import Connection
from holdfast._store.steps import JournalRow
from holdfast._store.workflows import Claimed, WorkflowRow
from holdfast.errors import DatabaseUnavailable, NotRunning, PayloadCodecError, RecordRejected
from holdfast.types import Status

STOP_PATIENCE = 0.5
"""Seconds that stopped runs get to leave before they are left behind."""
RELEASE_PATIENCE = 1.0
"""Seconds that giving back may take, before it is left to whoever finds this executor dead."""


class Executor:
    """The runs of this process. `run` is a task of the runtime's group."""

    def __init__(self, engine: Engine, registry: Registry, name: str, app_version: str | None) -> None:
        self.engine = engine
        self.registry = registry
        self.runs: dict[str, Run] = {}
        self.closing: bool = False
        self.lease: Lease = Lease(engine, self, name, app_version)
        engine.heart = self.lease
        self._claiming = Claiming(engine, registry, self.lease, self)
        self._settling = Settling(engine, self.lease)
        self._work_key = _keys.wake_key("executor", engine.id)
        self._tasks: set[asyncio.Task[None]] = set()
        self._parking: dict[str, Run] = {}
        self._asked_early: set[str] = set()
        self._context: Context | None = None
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
                group.create_task(self._settling.run(), name="holdfast settling")
                if len(self.registry):
                    for kind in KINDS:
                        taking = self._claiming.dispatch(started, kind)
                        group.create_task(taking, name=f"holdfast dispatcher, {kind}")
        finally:
            self.lost()

    async def aclose(self) -> None:
        """Leaves: lets runs go on for `Settings.drain` seconds, then stops them and gives them back [W11]."""
        self.closing = True
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
        for run in tuple(self.runs.values()):
            run.stop()

    def renewed(self) -> None:
        """There is a new lease: looks for work to take."""
        self.waiters.wake(self._work_key)

    def beaten(self) -> None:
        """A heartbeat has come through."""
        self._settling.beaten()

    async def _until_left(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self.runs:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass

    # Taking workflows

    def busy_with(self) -> list[str]:
        """Workflows that run here, or that are being given back."""
        return [*self.runs, *self._parking]

    async def settled_down(self) -> None:
        """Returns once what runs now is known to have survived its replay, or does not say so for long."""
        await self._settling.settled_down()

    def begin(self, found: Claimed, recorded: Sequence[JournalRow]) -> None:
        """Runs a workflow that has been claimed."""
        run = Run(
            self,
            self.registry[found.name],
            Owner(found.id, found.epoch),
            recorded,
            generation=found.generation,
            recovering=found.claims > 1,
            origin=found.origin,
        )
        self.launch(run, found.input, found.remaining, cancelling=found.cancelling)

    def launch(self, run: Run, data: bytes, remaining: float | None, *, cancelling: bool = False) -> None:
        """Begins a run, unless it is here already; `remaining`: seconds until its own timeout."""
        known = self.runs.get(run.workflow_id)
        if self.closing or (known is not None and known.owner.epoch >= run.owner.epoch):
            return
        if known is not None:
            known.stop()  # it does not know yet that it has been taken over
        self.runs[run.workflow_id] = run
        self._settling.watch(run)
        self._spawn(self._live(run, data, remaining), f"workflow {run.workflow_id}")
        if cancelling:
            if remaining is not None and remaining <= 0:
                run.cause = _own_timeout()
            self._cancel_recovered(run)
        elif run.owner.epoch == 1 and run.workflow_id in self._asked_early:
            self._asked_early.discard(run.workflow_id)
            run.cancel()

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
            run.cancel_asked = True
            self.limit_cleanup(run)
        elif run.journal:
            run.cancel_asked = True
            run.turns.when_replayed(run.cancel)
        else:
            run.cancel()

    # The life of a run

    async def _live(self, run: Run, data: bytes, remaining: float | None) -> None:
        scope.set(Branch(run, run.prefix))
        task = asyncio.current_task()
        assert task is not None
        run.adopt(task)
        timer = None
        if remaining is not None:
            timer = own_timer(max(remaining, 0.0), self._time_out, run)
        try:
            ending = await live_out(run, data)
            scope.set(None)
            if ending is not None:
                run.close()
                await self._end(run, ending)
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
            self._settling.forget(run)
            if self.runs.get(run.workflow_id) is run:
                del self.runs[run.workflow_id]
            if run.parked is not None and not self.closing:
                self._give_back(run)
            self._left.set()

    async def _end(self, run: Run, ending: Ending) -> None:
        """Records how it ends [W7], or that it goes on as another execution."""
        if isinstance(ending, Continue):
            await self._go_on(run, ending)
            return
        _observe.point("finish.before_commit")
        if await self._commit(run, ending) is not None:
            _observe.point("finish.after_commit")
            await self._has_ended(run, Status.from_code(ending.status))

    async def _go_on(self, run: Run, ending: Continue) -> None:
        _observe.point("continue.before_commit")
        answer = await self._commit(run, ending)
        if answer is not None:
            _observe.point("continue.after_commit")
            if answer.code is Code.CANCELLED:
                await self._has_ended(run, Status.CANCELLED)
            else:
                # An answer that it is not ours any more says the same: the reply to the first try was lost.
                _observe.signal("workflow.continued", workflow_id=run.workflow_id)

    async def _commit(self, run: Run, ending: Ending) -> Answer | None:
        """Commits a run's ending; None if it has become another. Without a database the workflow stays
        PENDING and is recovered later.
        """
        try:
            (answer,) = await self.writer.commit(ending)
        except DatabaseUnavailable:
            logger.error(
                "the outcome of workflow %r could not be recorded; it will be recovered", run.workflow_id
            )
            self.give_up()
            return None
        except RecordRejected as error:
            await self._end_refused(run, error)
            return None
        return answer

    async def _end_refused(self, run: Run, error: RecordRejected) -> None:
        """The database refuses the outcome itself: that is the outcome."""
        try:
            refused = failed(run, error)
        except PayloadCodecError as unread:
            run.park_unread(unread)
        else:
            await self.writer.commit(refused)

    async def _has_ended(self, run: Run, status: Status) -> None:
        _observe.signal("workflow.finished", workflow_id=run.workflow_id, status=status)
        if status is Status.CANCELLED:
            # Of a child whose start was on its way, the cancelling of the family knew nothing.
            await self._cancel_quietly(run.workflow_id, run.owner.epoch)

    def _give_back(self, run: Run) -> None:
        """A run whose code does not match its journal is over here: it goes on where there is code that does,
        or, if it was to end, it ends without its code.
        """
        self._parking[run.workflow_id] = run
        self._spawn(self._pass_on(run), f"passing on of workflow {run.workflow_id}")

    async def _pass_on(self, run: Run) -> None:
        try:
            if run.cancel_asked:
                await self._end(run, cancelled(run))
            elif self.lease.executor is not None:  # else it is freed with all that this executor had
                await self._park(run, self.lease.executor)
        finally:
            del self._parking[run.workflow_id]

    async def _park(self, run: Run, executor: int) -> None:
        """Gives a workflow back, and never takes it again [W5]."""
        cause = cancelled(run).output

        async def park(connection: Connection) -> int | None:
            return await workflows.park_workflow(
                connection,
                self.engine.sql,
                executor,
                run.workflow_id,
                run.owner.epoch,
                cause,
                self.engine.channel,
            )

        _observe.point("park.before_commit")
        status = await self.engine.ask(park, insist=True)
        _observe.point("park.after_commit")
        _observe.signal("workflow.parked", workflow_id=run.workflow_id)
        if status == Status.CANCELLED.code:
            await self._cancel_quietly(run.workflow_id)

    def give_up(self) -> None:
        """The database cannot be written to: begins anew as another executor, once it can be."""
        self.lease.lose("records could not be committed")

    def lose(self, run: Run) -> None:
        """The database says that this executor no longer owns the workflow [W14]."""
        if not run.over:
            logger.warning("workflow %r now belongs to another executor; it is stopped here", run.workflow_id)
        run.stop()

    # Cancelling

    async def cancel(self, workflow_id: str, epoch: int | None = None) -> bool:
        """Asks a workflow and its children to end [W10]; was it active? With `epoch`: only if it has not
        been resumed since.
        """

        async def ask(connection: Connection) -> dict[str, int | None]:
            return await workflows.cancel_workflow(
                connection, self.engine.sql, workflow_id, self.engine.channel, epoch
            )

        active = await self.engine.ask(ask)
        self.cancel_here(active)
        return workflow_id in active

    def cancel_soon(self, workflow_id: str) -> None:
        """Asks a workflow and its children to end, without waiting for it."""
        self._spawn(self._cancel_quietly(workflow_id), f"cancelling of workflow {workflow_id}")

    def cancel_here(self, ids: Iterable[str]) -> None:
        """Cancels those workflows that run in this process."""
        self._cancel_runs([run for workflow_id in ids if (run := self.runs.get(workflow_id)) is not None])

    def _cancel_runs(self, runs: Iterable[Run]) -> None:
        for run in runs:
            run.cancel()
        for run in tuple(self.runs.values()):
            if run.stuck and run.cancel_asked:
                self.end_stuck(run)

    def end_stuck(self, run: Run) -> None:
        """Ends a run, to be cancelled, whose code does not come to where it could be: without its code."""
        run.stop()
        self._spawn(self._end(run, cancelled(run)), f"end of workflow {run.workflow_id}")

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
        ending = cancelled(run)
        run.close()
        self._spawn(self._end(run, ending), f"end of workflow {run.workflow_id}")

    def _time_out(self, run: Run) -> None:
        """The workflow's own timeout: cancelled like by hand, its children too."""
        run.cancel(_own_timeout())
        self._spawn(
            self._cancel_quietly(run.workflow_id, run.owner.epoch), f"timeout of workflow {run.workflow_id}"
        )

    async def _cancel_quietly(self, workflow_id: str, epoch: int | None = None) -> None:
        try:
            await self.cancel(workflow_id, epoch)
        except (DatabaseUnavailable, NotRunning):
            logger.warning("workflow %r could not be cancelled with its children", workflow_id)

    async def _watch_cancelling(self) -> None:
        """Hears of workflows that another process has asked to end."""
        while True:
            executor = self.lease.executor
            keys = [self._work_key, _keys.wake_key("executor", str(executor or 0))]

            async def look(watched: int | None = executor) -> list[Run] | None:
                if watched != self.lease.executor:
                    return []
                return await self._list_cancelling(watched)

            self._cancel_runs(await self.waiters.until(keys, look) or ())

    async def hear_cancelling(self, run: Run) -> None:
        """A run has seen a child CANCELLED: perhaps with its whole family, of which the bell has told the
        child's process first. Then the run is cancelled too, and sees that [W10].
        """

        async def ask(connection: Connection) -> WorkflowRow | None:
            return await workflows.load_workflow(connection, self.engine.sql, run.workflow_id)

        row = await self.engine.ask(ask, insist=True)
        if row is not None and row.cancelling:
            run.cancel()
            await asyncio.sleep(0)  # where the cancellation is delivered

    async def _list_cancelling(self, executor: int | None) -> list[Run] | None:
        if executor is None:
            return None

        async def ask(connection: Connection) -> dict[str, int]:
            return await workflows.list_cancelling(connection, self.engine.sql, executor)

        found = await self.engine.ask(ask, insist=True)
        # One that is not here is on its way: the reply to its start, or to its claim, has not come yet.
        self._asked_early = {workflow_id for workflow_id in found if workflow_id not in self.runs}
        # One that has been resumed since is another run: what is told is about the one before it.
        asked = [run for run in self.runs.values() if found.get(run.workflow_id) == run.owner.epoch]
        return [run for run in asked if not run.cancel_asked] or None


def _own_timeout() -> TimeoutError:
    return TimeoutError("the workflow's own timeout has passed")
