"""Group reading: the probes of waiters outside workflows, many in one round trip.

A woken waiter reads the table. When thousands wake at once, after a reconnect or a burst, their looks gather
while the last query is on its way and go together in the next one [N4]. Nothing here waits for anything to
happen: that is `until()`, which asks here.
"""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar, overload

from holdfast import _clock
from holdfast._observe import logger
from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection, ConnectionLost, Retryable, connect, deadline, unavailable
from holdfast._store.looks import LOOKS, Ended, EventLook, EventNews, ResultLook, StreamLook, StreamNews
from holdfast.config import Settings
from holdfast.errors import NotRunning

LOOK_DEADLINE = 15.0
"""Seconds that one query may take before its connection is taken for dead."""
MOST_LOOKS = 2000
MOST_STREAMS = 50
"""Streams, or places in them, in one query: each look may bring hundreds of values."""

Look = ResultLook | EventLook | StreamLook
T = TypeVar("T")


class LookupStatistics(NamedTuple):
    """Counts since the engine began."""

    queries: int
    looks: int


class _Question(NamedTuple):
    look: Look
    future: "asyncio.Future[Any]"
    born: float


def _is_wanted(questions: Iterable[_Question]) -> bool:
    return not all(question.future.done() for question in questions)


def _together(asked: dict[Look, list[_Question]], looks: Iterable[Look]) -> list[_Question]:
    return [question for look in looks for question in asked[look]]


class Lookups:
    """Answers looks in groups. `look` is for probes; `run` is a task of the engine's group."""

    def __init__(self, dsn: str, sql: Statements, settings: Settings) -> None:
        self._dsn = dsn
        self._sql = sql
        self._settings = settings
        self.closed: bool = False
        self._asked: dict[Look, list[_Question]] = {}
        self._answering: list[_Question] = []
        self._filled = asyncio.Event()
        self._connection: Connection | None = None
        self._queries = self._looks = 0

    @overload
    async def look(self, look: ResultLook) -> Ended | None: ...
    @overload
    async def look(self, look: EventLook) -> EventNews | None: ...
    @overload
    async def look(self, look: StreamLook) -> StreamNews | None: ...
    async def look(self, look: Look) -> Any:
        """What the table says; None if it has nothing to say yet.

        Raises:
            DatabaseUnavailable: if the database was away for `Settings.database_patience` seconds.
        """
        if self.closed:
            raise NotRunning("the runtime or client has been left")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(look, []).append(_Question(look, future, _clock.monotonic()))
        self._filled.set()
        return await future

    def statistics(self) -> LookupStatistics:
        """What has been asked so far."""
        return LookupStatistics(self._queries, self._looks)

    async def run(self) -> None:
        """Answers what gathers, until cancelled."""
        try:
            while True:
                await self._filled.wait()
                asked = {look: self._asked.pop(look) for look in tuple(islice(self._asked, MOST_LOOKS))}
                self._answering = _together(asked, asked)
                if not self._asked:
                    self._filled.clear()
                for kind in LOOKS:
                    looks = [look for look in asked if type(look) is kind and _is_wanted(asked[look])]
                    most = MOST_STREAMS if kind is StreamLook else MOST_LOOKS
                    for begin in range(0, len(looks), most):
                        await self._answer(kind, _together(asked, looks[begin : begin + most]))
        finally:
            if self._connection is not None:
                self._connection.terminate()
            self.closed = True
            for question in (*self._answering, *_together(self._asked, self._asked)):
                if not question.future.done():
                    question.future.set_exception(NotRunning("the runtime or client has been left"))

    async def _answer(self, kind: type, group: list[_Question]) -> None:
        """Asks until there is an answer, for as long as somebody still has patience."""
        delay = 0.02
        while group:
            try:
                # Those who ask the same share one answer [S7].
                looks = list(dict.fromkeys(question.look for question in group))
                found = dict(zip(looks, await self._query(kind, looks), strict=True))
            except Exception as error:
                # Anything else, a refused log-in or a missing right, may pass as well.
                if not isinstance(error, (ConnectionLost, Retryable)):
                    logger.exception("a look-up failed; it is tried again")
                if self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
                group = self._give_up_late(group, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)
            else:
                for question in group:
                    if not question.future.done():
                        question.future.set_result(found[question.look])
                return

    async def _query(self, kind: type, looks: Sequence[Look]) -> list[Any]:
        """What the table says of each, None where there is nothing to say."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, role="lookups")
        self._queries += 1
        self._looks += len(looks)
        async with deadline(self._connection, LOOK_DEADLINE):
            found: dict[int, Any] = await LOOKS[kind](self._connection, self._sql, looks)
        return [found.get(place) for place in range(len(looks))]

    def _give_up_late(self, group: list[_Question], error: Exception) -> list[_Question]:
        oldest = _clock.monotonic() - self._settings.database_patience
        kept = []
        for question in group:
            if question.born > oldest:
                kept.append(question)
            elif not question.future.done():
                question.future.set_exception(unavailable(error))
        return kept
