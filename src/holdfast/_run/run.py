"""One execution of a workflow in this process: its ownership, its journal, its tasks, and how it may end.

A run is *stopped* when this process shuts down or has lost the workflow: from then on it writes nothing,
whatever the code makes of the exceptions [W11]. It is *cancelling* when somebody has asked the workflow to
end: its tasks are cancelled once, its `finally` blocks may make durable calls for `Settings.cleanup_time`,
and its outcome will be CANCELLED [W10].
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol
from zlib import crc32

from holdfast._engine.engine import Engine
from holdfast._engine.submissions import Answers, Received
from holdfast._engine.waiters import Waiters
from holdfast._engine.writer import Writer
from holdfast._observe import logger
from holdfast._run.registry import Definition, Registry
from holdfast._run.turns import Turns
from holdfast._store.commits import Answer, Code, Owner, Record
from holdfast._store.steps import JournalRow
from holdfast.errors import (
    DatabaseUnavailable,
    NondeterminismError,
    NotRunning,
    PayloadCodecError,
    WorkflowStopped,
)
from holdfast.types import PayloadContext

MOST_BIRTHS = 24
"""Bits of a task's number that count the tasks of one workflow."""


class Host(Protocol):
    """What a run needs of the executor that runs it."""

    @property
    def engine(self) -> Engine:
        """Pool, waiters, writer, codec."""

    @property
    def writer(self) -> Writer:
        """Where records go."""

    @property
    def waiters(self) -> Waiters:
        """Where calls wait."""

    @property
    def registry(self) -> Registry:
        """What can run here."""

    @property
    def runs(self) -> "dict[str, Run]":
        """What runs here."""

    def launch(self, run: "Run", data: bytes, remaining: float | None, *, cancelling: bool = False) -> None:
        """Begins a run."""

    def lose(self, run: "Run") -> None:
        """The database says that the workflow belongs to another executor."""

    def give_up(self) -> None:
        """The database cannot be written to."""

    async def hear_cancelling(self, run: "Run") -> None:
        """A run has seen a child CANCELLED: perhaps with its whole family, of which the bell has told the
        child's process first. Then the run is cancelled too, and sees that [W10].
        """

    def limit_cleanup(self, run: "Run") -> None:
        """A cancelled run has only so much time left."""

    def end_stuck(self, run: "Run") -> None:
        """Ends a run, to be cancelled, whose code does not come to where it could be."""

    def cancel_soon(self, workflow_id: str) -> None:
        """Asks another workflow to end, without waiting for it."""


class Run:
    """See the module. `journal` is what an earlier process recorded, in the order of completion; empty at
    first. `origin` is the workflow for which its input was encoded, if it is a fork.
    """

    __slots__ = (
        "__weakref__",
        "_births",
        "_items",
        "cancel_asked",
        "cancelling",
        "cause",
        "definition",
        "executor",
        "generation",
        "interrupted",
        "interrupted_again",
        "journal",
        "mailroom",
        "moment",
        "origin",
        "outstanding",
        "over",
        "owner",
        "parked",
        "patches",
        "posted",
        "prefix",
        "recovering",
        "settled",
        "stopped",
        "stuck",
        "tasks",
        "turns",
        "unmade",
        "workflow_id",
    )

    def __init__(
        self,
        executor: Host,
        definition: Definition,
        owner: Owner,
        recorded: Iterable[JournalRow] = (),
        *,
        generation: int = 0,
        recovering: bool = False,
        origin: str | None = None,
    ) -> None:
        self.executor: Host = executor
        self.definition: Definition = definition
        self.owner: Owner = owner
        self.workflow_id: str = owner.workflow_id
        self.origin: str | None = origin
        self.journal: dict[str, JournalRow] = {record.step_id: record for record in recorded}
        self.generation: int = generation
        self.prefix: str = f"{generation}~" if generation else ""
        self.recovering: bool = recovering or bool(self.journal)
        # Ordered, so that everybody is cancelled in the order of births, in a replay too.
        self.tasks: dict[asyncio.Future[Any], bool] = {}
        self.outstanding: dict[str, asyncio.Future[Any] | None] = {}
        # Rows with a "#" in their id are beside the order of calls: they are found by their name.
        calls = [record for record in self.journal.values() if has_turn(record.step_id)]
        finished = [record.step_id for record in calls if record.finished]
        self.turns: Turns = Turns(self.tasks, self.outstanding, finished, self._call_missing)
        self.unmade: set[str] | None = self._waiting_calls() if self.journal else None
        self.patches: dict[str, bool] | None = None
        self.posted: asyncio.Future[Any] | None = None
        self.settled: bool = False
        self.interrupted: set[str] | None = None
        self.mailroom: object | None = None
        self.moment: float | None = None
        """The loop's time, for timeouts that are made, from one durable call to the next."""
        self._births: int = 0
        self._items: dict[str, list[int]] | None = None
        self.stopped: bool = False
        self.over: bool = False
        self.cancelling: bool = False
        self.cancel_asked: bool = False
        self.interrupted_again: bool = False
        self.stuck: bool = False
        self.cause: BaseException | None = None
        self.parked: NondeterminismError | WorkflowStopped | None = None

    def _waiting_calls(self) -> set[str]:
        """Calls of the journal that have not completed, until the code has made them; of an `each` there may
        be items and no row of its own.
        """
        waiting = {id for id, record in self.journal.items() if has_turn(id) and not record.finished}
        begun = (each_of(id) for id in self.journal)
        return waiting.union(id for id in begun if id is not None and id not in self.journal)

    def call_made(self, step_id: str) -> None:
        """The code has come to this call."""
        if self.unmade:
            self.unmade.discard(step_id)

    def adopt(self, task: "asyncio.Future[Any]", *, has_turns: bool = True) -> None:
        """Takes in a task that was born in the workflow; it shares the run's fate. Without turns: one that
        the library has made, in which no code of the workflow runs.
        """
        if task.done():
            return
        self.tasks[task] = has_turns
        task.add_done_callback(self._task_ended)
        if has_turns:
            self.turns.join(task)
        if self.stopped or self.over:
            task.cancel()

    def next_number(self) -> int:
        """The number of the next task born in this workflow, on whatever branch. asyncio keeps all tasks of
        the process in one set, by their hash, which this is: so those of one workflow begin where those of
        no other do, and a fork's where its original's did.
        """
        if not self._births:
            self._births = crc32((self.origin or self.workflow_id).encode()) << MOST_BIRTHS
        self._births += 1
        return self._births

    def _task_ended(self, task: "asyncio.Future[Any]") -> None:
        if self.tasks.pop(task, False):
            self.turns.leave(task)
        if (self.over or self.stopped) and not task.cancelled():
            task.exception()  # of a task that nobody waits for any more: nobody needs to be told

    async def commit(self, record: Record, received: Received | None = None) -> Answers:
        """Commits a record of this workflow.

        Raises:
            WorkflowStopped: if this process shuts down, or has lost the workflow; then nothing was written
            [W11, W14].
        """
        self.check()
        try:
            answers = await self.executor.writer.commit(record, received)
        except asyncio.CancelledError:
            self.check()
            raise
        except (DatabaseUnavailable, NotRunning) as error:
            raise self.cut_off(error) from None
        if answers[0].code is Code.LOST:
            self.executor.lose(self)
        self.check()
        return answers

    def cut_off(self, error: DatabaseUnavailable | NotRunning) -> WorkflowStopped:
        """Nothing can be written from here any more: nobody may see that inside a workflow as anything but
        the end of the run, for a replay would know nothing of it [W11].
        """
        if isinstance(error, NotRunning):
            self.stop()
            return self.gone()
        self.executor.give_up()
        return WorkflowStopped(f"the database is away; workflow {self.workflow_id!r} goes on when it is back")

    def gone(self) -> WorkflowStopped:
        """What a call of a run gets that is over in this process."""
        return WorkflowStopped(f"workflow {self.workflow_id!r} no longer runs in this process")

    def post(self, record: Record) -> None:
        """Has a record committed without waiting for it, but before whatever this workflow records after it;
        who records by another connection waits for `posted` first.

        Raises:
            WorkflowStopped: as for `commit`.
        """
        self.check()
        try:
            future = self.executor.writer.post(record)
        except NotRunning as error:
            raise self.cut_off(error) from None
        self.posted = future
        future.add_done_callback(self._after_post)

    def _after_post(self, future: "asyncio.Future[Answers]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, NotRunning):
            self.stop()
        elif error is not None:
            # What comes after it must not be committed without it.
            self.executor.give_up()
        elif future.result()[0].code is Code.LOST:
            self.executor.lose(self)

    async def insist(self, record: Record) -> None:
        """Commits a record that must not be withdrawn by another cancellation.

        Raises:
            WorkflowStopped: as for `commit`.
        """
        self.check()
        answers = await self.executor.writer.insist(record)
        if answers is None:
            self.executor.give_up()
        elif answers[0].code is Code.LOST:
            self.executor.lose(self)
        self.check()

    def context(self, answer: Answer, kind: str, name: str = "") -> PayloadContext:
        """The identity of a recorded payload of this workflow, or of the one that it is a fork of."""
        return self.executor.engine.context(answer.origin or self.workflow_id, kind, name)

    def check(self) -> None:
        """May this run still act?

        Raises:
            WorkflowStopped: if not.
            NondeterminismError: if its code does not match its journal.
        """
        if self.parked is not None:
            raise self.parked
        if self.stopped or self.over:
            raise self.gone()

    def stop(self) -> None:
        """Ends the run here without an outcome; the workflow goes on elsewhere or later [W11]."""
        if not self.stopped:
            self.stopped = True
            self._cancel_tasks()
            self.turns.let_go()

    def cancel(self, cause: BaseException | None = None) -> None:
        """Ends the workflow [W10]: cancels every task of it, once; what they wait for is recorded as
        interrupted.
        """
        if self.cause is None:
            self.cause = cause
        self.cancel_asked = True
        if self.cancelling or self.stopped or self.over:
            return
        if self.turns.unreplayed is not None:
            self.turns.when_replayed(self.cancel)
            return
        self.cancelling = True
        self.interrupted = set(self.outstanding)
        self.executor.limit_cleanup(self)
        self._cancel_tasks()

    def interrupt_again(self) -> None:
        """A replay has come to a call that the cancellation interrupted: at the first one every task is
        cancelled again, once, as it was then.
        """
        if not self.interrupted_again:
            self.interrupted_again = self.cancelling = True
            self.interrupted = set()
            self._cancel_tasks()

    def park(self, error: NondeterminismError) -> None:
        """Leaves the workflow PENDING because its code does not match its journal [W5]."""
        self._park(error, "matching code runs", error)

    def park_unread(self, error: PayloadCodecError) -> WorkflowStopped:
        """Leaves the workflow PENDING because the payload codec of this process fails [K3]: that is no
        outcome of the workflow, and nothing that its code may react to.
        """
        stopped = WorkflowStopped(f"workflow {self.workflow_id!r} goes on where its payloads can be read")
        stopped.__cause__ = error
        self._park(stopped, "a process with the right Settings.codec takes it", error)
        return stopped

    def _park(self, parked: NondeterminismError | WorkflowStopped, until: str, reason: Exception) -> None:
        if self.parked is None:
            self.parked = parked
            self.stopped = True
            logger.error("workflow parked, it goes on once %s: %s", until, reason)
            self._cancel_tasks()
            self.turns.let_go()

    def close(self) -> None:
        """The function has returned: tasks left over are cancelled and record nothing."""
        self.over = True
        self._cancel_tasks(but=asyncio.current_task())
        self.turns.close()

    def _cancel_tasks(self, but: "asyncio.Future[Any] | None" = None) -> None:
        for task in tuple(self.tasks):
            if task is not but:
                task.cancel()

    def recorded_items(self, step_id: str) -> list[int]:
        """The items of an `each` that have outcomes in the journal, in the order of completion."""
        if self._items is None:
            self._items = {}
            for record in self.journal.values():
                each_id = each_of(record.step_id)
                if each_id is None or not record.finished:
                    continue
                if record.outcome not in (Code.INTERRUPTED, Code.EXPIRED):
                    index = record.step_id.rpartition("#")[2]
                    self._items.setdefault(each_id, []).append(int(index))
        return self._items.get(step_id, [])

    def _call_missing(self, step_id: str) -> None:
        error = mismatch(self, self.journal[step_id], "no such call so far")
        self.stuck = True
        logger.error("a replay waits for a call that the code does not make: %s", error)
        if self.cancel_asked:
            self.executor.end_stuck(self)


def item_id(step_id: str, index: int) -> str:
    """The id of one item's call, of the `each` that has this step id."""
    return f"{step_id}#{index}"


def each_of(step_id: str) -> str | None:
    """The id of the `each` of which this is an item; None if it is none: a `patched` has its name there."""
    each_id, _, index = step_id.partition("#")
    return each_id if index.isdecimal() and each_id[-1:].isdecimal() else None


def has_turn(step_id: str) -> bool:
    """Does the workflow's code see this call's completion? Of an item of `each` it hears from a batch."""
    return "#" not in step_id


def mismatch(run: Run, record: JournalRow, found: str) -> NondeterminismError:
    """The error that names both sides."""
    return NondeterminismError(run.workflow_id, record.step_id, f"{record.kind} {record.name!r}", found)
