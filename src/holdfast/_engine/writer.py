"""Group commit: the only write path of running workflows, and of every send and start from outside.

A durable call hands over a record and waits; the writer commits everything that has gathered in one
statement, one round trip, one fsync, and then answers every caller. There is no linger timer: with nothing in
flight a record goes at once, under load the next batch gathers while the last one is on its way.

Batches travel in lanes, by hash of the workflow id: a workflow's records stay in one lane, in the order of
the calls, and a lane has one batch in flight. Callers are answered in that same order.

What can go wrong, and what it means:
- The connection is lost: whether the batch was committed is unknown. It is sent again, marked `again`;
  identities made before the first try, and the lane's lock, see to it that nothing is done twice. That goes
  on until `database_patience` has passed for a record, which then fails with DatabaseUnavailable.
- The data is refused: the batch is split until the bad record stands alone; it alone fails.
- A caller is cancelled: a record still queued is withdrawn; one in flight that belongs to a workflow is
  waited for, and undone if it took something.
- The backlog is full: callers wait for room, which comes when it has shrunk to half.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from holdfast import _clock, _observe
from holdfast._engine.submissions import CLOSED, Answers, Job, Received, Submission, outlast
from holdfast._engine.waiters import Waiters
from holdfast._keys import wake_key
from holdfast._observe import logger
from holdfast._store.commits import DONE, MOST_RECORDS, Answer, Batch, Record, answers_of, bell_payloads
from holdfast._store.connection import (
    Connection,
    ConnectionLost,
    DataRejected,
    Retryable,
    UniqueViolation,
    connect,
    deadline,
    unavailable,
)
from holdfast.config import Settings
from holdfast.errors import NotRunning, RecordRejected

LANES = 2
MOST_BYTES = 8 * 1024 * 1024
BATCH_DEADLINE = 15.0
"""Seconds that one batch may take before its connection is taken for dead."""

T = TypeVar("T")


class WriterStatistics(NamedTuple):
    """Counts since the writer began, and what waits now."""

    batches: int
    records: int
    repeated: int
    backlog: int


class Writer:
    """Commits records in groups. `commit` is for callers; `run` is a task of the engine's group, one for each
    lane.
    """

    def __init__(
        self,
        dsn: str,
        statement: str,
        channel: str,
        mark: str,
        waiters: Waiters,
        settings: Settings,
        app_version: str | None,
    ) -> None:
        self.executor: int | None = None
        self.closed: bool = False
        self.settings = settings
        self._dsn = dsn
        self._statement = statement
        self._channel = channel
        self._mark = mark
        self._waiters = waiters
        self._app_version = app_version
        self.lanes: list[Lane] = [Lane(self, number) for number in range(LANES)]

    def lane(self, workflow_id: str) -> "Lane":
        """The lane in which everything of this workflow goes."""
        return self.lanes[hash(workflow_id) % len(self.lanes)]

    async def commit(self, record: Record, received: Received | None = None) -> Answers:
        """Returns once `record` is committed, with an answer for each of its places.

        Cancelling withdraws a record that is still queued. One in flight that belongs to a workflow, or whose
        answers are `received`, is waited for, and undone if need be, before CancelledError goes on [M8].

        Raises:
            DatabaseUnavailable: if the database was away for `Settings.database_patience` seconds.
        """
        lane = self.lane(record.lane)
        while lane.full:
            await lane.room()
        if self.closed:
            raise NotRunning(CLOSED)
        submission = lane.put(record)
        try:
            answers = await submission.future
        except asyncio.CancelledError:
            if submission.sent and (received is not None or record.owner is not None):
                await self._settle(submission, received)
            raise
        if received is not None:
            received(answers)
        return answers

    async def _settle(self, submission: Submission, received: Received | None) -> None:
        """Waits for the reply to a record whose caller has been cancelled, through any further cancelling."""
        answers = await outlast(submission.reply)
        record = received(answers) if received is not None and answers is not None else None
        if record is not None:
            await self.insist(record)

    async def carry_out(self, workflow_id: str, act: Callable[[], Awaitable[T]]) -> T:
        """Has the lane of a workflow do something between two batches: a commit of another connection, which
        then has its place in the order of the workflow's records.

        Cancelling withdraws what has not begun; what has begun is waited for.
        """
        job = self.lane(workflow_id).put_job(act)
        try:
            return await asyncio.shield(job.future)
        except asyncio.CancelledError:
            if not job.begun:
                job.future.cancel()
            await outlast(job.future)
            raise

    def post(self, record: Record) -> "asyncio.Future[Answers]":
        """Queues a record behind all that its workflow has queued before, however full the lane; its answers
        come in the future.

        Raises:
            NotRunning: if nothing is committed any more.
        """
        if self.closed:
            raise NotRunning(CLOSED)
        return self.lane(record.lane).put(record).future

    async def insist(self, record: Record) -> Answers | None:
        """Commits a record that must not be withdrawn, through any cancelling; None if it failed."""
        if self.closed:
            return None
        return await outlast(self.lane(record.lane).put(record).future)

    def statistics(self) -> WriterStatistics:
        """What has been committed so far, over all lanes."""
        return WriterStatistics(
            sum(lane.batches for lane in self.lanes),
            sum(lane.records for lane in self.lanes),
            sum(lane.repeated for lane in self.lanes),
            sum(len(lane.queue) for lane in self.lanes),
        )

    async def send(
        self, connection: Connection, batch: Batch, lane: int, *, again: bool
    ) -> dict[int, Answer]:
        """One round trip: commits a batch."""
        bells = bell_payloads(self._mark, batch.bells)
        executor = self.executor
        async with deadline(connection, BATCH_DEADLINE):
            rows = await connection.fetch(
                self._statement,
                executor,
                self._app_version,
                self._channel,
                lane,
                again,
                bells,
                *batch.columns(),
            )
        return answers_of(rows)

    def ring(self, batch: Batch) -> None:
        """Wakes this process's own waiters of what a batch has committed [N3]."""
        for key in batch.bells:
            self._waiters.wake(key)

    def announce(self, lane: "Lane", recipient: tuple[str, str]) -> None:
        """Wakes a recv of this process that waits for a message which has just been queued in its own lane:
        so its claim goes in the same batch, behind the message, and both are one commit.
        """
        workflow_id, topic = recipient
        if self.lane(workflow_id) is lane:
            self._waiters.wake(wake_key("message", workflow_id, topic))

    async def open(self, number: int) -> Connection:
        """A connection for a lane."""
        return await connect(self._dsn, role=f"writer {number}")

    def lock_key(self, number: int) -> int:
        """The advisory lock of a lane of this writer, and of no other."""
        digest = blake2b(f"{self._channel}:{self._mark}:{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)


class Lane:
    """One queue, one connection, one batch in flight."""

    def __init__(self, writer: Writer, number: int) -> None:
        self.queue: deque[Submission] = deque()
        self.number = number
        self.batches: int = 0
        self.records: int = 0
        self.repeated: int = 0
        self.warm: asyncio.Event = asyncio.Event()
        self._jobs: list[Job] = []
        self._writer = writer
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._connection: Connection | None = None
        self._in_flight: list[Submission] = []
        self._key = writer.lock_key(number)

    @property
    def full(self) -> bool:
        """Is the backlog at its limit, or not yet back at half of it?"""
        return not self._room.is_set()

    async def room(self) -> None:
        """Waits until the backlog has shrunk to half its limit."""
        await self._room.wait()

    def put(self, record: Record) -> Submission:
        """Queues a record."""
        submission = Submission(record, asyncio.get_running_loop().create_future())
        self.queue.append(submission)
        recipient = record.recipient
        if recipient is not None:
            self._writer.announce(self, recipient)
        self._filled.set()
        if len(self.queue) * LANES >= self._writer.settings.backlog:
            self._room.clear()
        return submission

    def put_job(self, act: Callable[[], Awaitable[Any]]) -> Job:
        """Queues something to be done before the next batch."""
        job = Job(act, asyncio.get_running_loop().create_future())
        if self._writer.closed:
            job.future.set_exception(NotRunning(CLOSED))
        self._jobs.append(job)
        self._filled.set()
        return job

    async def run(self) -> None:
        """Commits what gathers, until cancelled."""
        try:
            await self._warm_up()
            while True:
                await self._filled.wait()
                jobs, self._jobs = self._jobs, []
                for job in jobs:
                    await job.carry_out()
                self._in_flight = self._take()
                if self._in_flight:
                    await self._commit(self._in_flight, again=False)
        finally:
            self._drop_connection()
            self._abandon()

    async def _warm_up(self) -> None:
        """An empty batch, so that the first real one finds a connection and its function compiled."""
        try:
            self._connection = await self._writer.open(self.number)
            await self._writer.send(self._connection, Batch(), self._key, again=False)
        except Exception as error:
            # Nothing is lost: the first batch meets it again, and tells.
            logger.debug("a writer starts without a connection: %s", type(error).__name__)
            self._drop_connection()
        finally:
            self.warm.set()

    def _abandon(self) -> None:
        """Nobody commits any more: tells those who wait. What was in flight may have been committed."""
        self._writer.closed = True
        self._room.set()
        for submission in (*self._in_flight, *self.queue):
            submission.fail(NotRunning(CLOSED))
        for job in self._jobs:
            if not job.future.done():
                job.future.set_exception(NotRunning(CLOSED))

    def _take(self) -> list[Submission]:
        """The next batch: what is queued, up to the limits; withdrawn records fall out here."""
        taken: list[Submission] = []
        size = 0
        most = min(self._writer.settings.batch_records, MOST_RECORDS)
        places = 0
        while (
            self.queue and size < MOST_BYTES and (not taken or places + self.queue[0].record.places <= most)
        ):
            submission = self.queue.popleft()
            if not submission.future.done():
                submission.sent = True
                taken.append(submission)
                size += submission.record.size
                places += submission.record.places
        if not self.queue and not self._jobs:
            self._filled.clear()
        if len(self.queue) * LANES * 2 <= self._writer.settings.backlog:
            self._room.set()
        return taken

    async def _commit(self, submissions: list[Submission], *, again: bool) -> None:
        """Commits a batch, repeats it for as long as it must be, splits it when its data is refused."""
        delay = 0.02
        while submissions:
            try:
                await self._try(submissions, again=again)
            except ConnectionLost as error:
                again = True
                self._drop_connection()
                submissions = self._give_up_late(submissions, error)
            except Retryable as error:
                submissions = self._give_up_late(submissions, error)
            except UniqueViolation as error:
                if again:
                    await self._split(submissions, error)
                    return
                again = True
                continue
            except DataRejected as error:
                await self._split(submissions, error, again=again)
                return
            except Exception as error:
                # A refused log-in, a missing right, a full disk: may pass.
                logger.exception("a batch could not be committed; it is tried again")
                again = True
                self._drop_connection()
                submissions = self._give_up_late(submissions, error)
            else:
                return
            self.repeated += 1
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)

    async def _try(self, submissions: list[Submission], *, again: bool) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._writer.open(self.number)
        batch = Batch()
        places = []
        next_place = 1
        for submission in submissions:
            places.append(next_place)
            next_place = submission.record.add(batch, next_place)
        _observe.point("writer.before_commit")
        answers = await self._writer.send(self._connection, batch, self._key, again=again)
        _observe.point("writer.after_commit")
        self.batches += 1
        self.records += len(submissions)
        for submission, place in zip(submissions, places, strict=True):
            submission.answer(_answers_to(submission.record, place, batch, answers))
        self._writer.ring(batch)

    def _give_up_late(self, submissions: list[Submission], error: Exception) -> list[Submission]:
        """Fails the records for which the database has been away too long; keeps the others."""
        oldest = _clock.monotonic() - self._writer.settings.database_patience
        kept = []
        for submission in submissions:
            if submission.born > oldest:
                kept.append(submission)
            else:
                submission.fail(unavailable(error))
        return kept

    async def _split(self, submissions: list[Submission], error: DataRejected, *, again: bool = True) -> None:
        """One bad record fails alone: halves the batch until it is found."""
        if len(submissions) == 1:
            submissions[0].fail(rejected(error))
            return
        middle = len(submissions) // 2
        await self._commit(submissions[:middle], again=again)
        await self._commit(submissions[middle:], again=again)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _answers_to(record: Record, place: int, batch: Batch, answers: dict[int, Answer]) -> Answers:
    """What was said of one record: of each of its places, or that its owner has lost the workflow."""
    if not answers and record.places == 1:  # by far the most
        return _ONLY_DONE
    if record.owner is not None:
        lost = answers.get(-batch.owners[record.owner])
        if lost is not None:
            return [lost] * record.places
    return [answers.get(place + offset, DONE) for offset in range(record.places)]


_ONLY_DONE = (DONE,)


def rejected(error: DataRejected) -> RecordRejected:
    """The error of the caller whose record was refused."""
    rejection = RecordRejected(f"the database refused this record: {error}")
    rejection.__cause__ = error
    return rejection
