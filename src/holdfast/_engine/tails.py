"""One look for many readers: the newest values of a stream, shared by all who read it in this process [S7].

A tail keeps a window of values as they were read, bounded in number and in bytes. A reader whose next value
is in the window is served from it. A reader at the end of what is known looks, and those who would ask the
same meanwhile share its answer; where a look has found nothing and no bell has rung since, nobody looks
again. A reader that has fallen behind the window reads pages of its own and delays nobody. So nothing is kept
for a reader, however slow it is.

A tail belongs to its readers and goes with the last of them. It only counts bells: who waits is `until()`,
which asks here.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary, finalize

from holdfast import _keys
from holdfast._engine.lookups import Lookups
from holdfast._engine.waiters import Waiters
from holdfast._store.looks import StreamLook, StreamNews, StreamValue

WINDOW_VALUES = 1000
WINDOW_BYTES = 1024 * 1024
"""The newest page is kept in any case: it may be as large as a look's answer."""


class Part(NamedTuple):
    """Some news, and the index of the first value in them that was asked for."""

    news: StreamNews
    begin: int


class Shared(NamedTuple):
    """The answer to a look, for those who wait for it; none if who asked has left meanwhile."""

    answered: bool
    part: Part | None


class Tail:
    """The newest values of one stream as far as this process knows them."""

    def __init__(self, workflow_id: str, key: str, lookups: Lookups, waiters: Waiters) -> None:
        self._workflow_id = workflow_id
        self._key = key
        self._lookups = lookups
        self._written = waiters.tally(_keys.wake_key("stream", workflow_id, key))
        self._ends = waiters.tally(_keys.wake_key("end", workflow_id))
        finalize(self, self._written.close).atexit = False
        finalize(self, self._ends.close).atexit = False
        self._window = Window()
        self._asking: dict[tuple[int, int], list[asyncio.Future[Shared]]] = {}
        # Behind this offset there was nothing when so many bells had rung; and what the stream had come to.
        self._quiet = (0, -1)
        self._end: StreamNews | None = None

    @property
    def over(self) -> bool:
        """Has its workflow ended, at least once? It may be resumed or replaced: let newcomers look anew."""
        return self._end is not None or self._ends.rings > 0

    @property
    def _rings(self) -> int:
        return self._written.rings + self._ends.rings

    async def look(self, after: int) -> Part | None:
        """What is behind an offset, or what the stream has come to; None if there is nothing yet: then a bell
        will ring.
        """
        while True:
            part = self._window.find(after)
            if part is not None:
                return part
            quiet_after, quiet_rings = self._quiet
            if quiet_rings == self._rings and after >= quiet_after:
                return None if self._end is None else Part(self._end, 0)
            others = self._asking.get((after, self._rings))
            if others is None:
                return await self.ask(after)
            mine: asyncio.Future[Shared] = asyncio.get_running_loop().create_future()
            others.append(mine)
            shared = await mine
            if shared.answered:
                return shared.part

    async def ask(self, after: int) -> Part | None:
        """What the table says is behind an offset, whatever is known here."""
        asked = after, self._rings
        others: list[asyncio.Future[Shared]] = []
        first = self._asking.setdefault(asked, others) is others
        shared = Shared(False, None)
        try:
            news = await self._lookups.look(StreamLook(self._workflow_id, self._key, after))
            self._learn(asked, news)
            shared = Shared(True, None if news is None else Part(news, 0))
        finally:
            if first:
                del self._asking[asked]
            for other in others:
                if not other.done():
                    other.set_result(shared)
        return shared.part

    def _learn(self, asked: tuple[int, int], news: StreamNews | None) -> None:
        after, rings = asked
        if news is not None:
            if news.values:
                self._window.add(news)
                after = news.values[-1].offset
            if not news.complete:
                return
            if news.final:
                self._end = StreamNews((), news.closed, news.status, news.oldest, news.length)
        if rings == self._quiet[1]:
            after = min(after, self._quiet[0])
        if rings >= self._quiet[1]:
            self._quiet = after, rings


class Window:
    """The newest pages of values, without holes between them."""

    __slots__ = ("_pages", "_sizes", "_starts", "_total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pages: list[StreamNews] = []
        self._sizes: list[int] = []
        self._total = 0

    def find(self, after: int) -> Part | None:
        """The page with the value behind an offset, if it is kept here."""
        place = bisect_right(self._starts, after + 1) - 1
        if place < 0:
            return None
        page, index = self._pages[place], after + 1 - self._starts[place]
        return Part(page, index) if index < len(page.values) else None

    def add(self, page: StreamNews) -> None:
        """Keeps a page that carries on where the newest one ends, or that lies wholly behind it; then it is
        the only one.
        """
        first, last = page.values[0].offset, page.values[-1].offset
        end = self._starts[-1] + len(self._pages[-1].values) if self._starts else first
        if last < end:
            return
        if first > end:
            self._forget(len(self._pages))
        elif first < end:
            page = StreamNews(page.values[end - first :], page.closed, page.status, page.oldest, page.length)
        size = _size(page.values)
        self._starts.append(page.values[0].offset)
        self._pages.append(page)
        self._sizes.append(size)
        self._total += size
        self._shrink(last + 1)

    def _shrink(self, end: int) -> None:
        count = 0
        total = self._total
        while count < len(self._pages) - 1 and (
            total > WINDOW_BYTES or end - self._starts[count] > WINDOW_VALUES
        ):
            total -= self._sizes[count]
            count += 1
        self._forget(count)

    def _forget(self, count: int) -> None:
        self._total -= sum(self._sizes[:count])
        del self._starts[:count], self._pages[:count], self._sizes[:count]


class Tails:
    """The tails of this process."""

    def __init__(self, lookups: Lookups, waiters: Waiters) -> None:
        self._lookups = lookups
        self._waiters = waiters
        self._tails: WeakValueDictionary[tuple[str, str], Tail] = WeakValueDictionary()

    def tail(self, workflow_id: str, key: str) -> Tail:
        """The tail of a stream, for as long as its readers hold it."""
        tail = self._tails.get((workflow_id, key))
        if tail is None or tail.over:
            tail = self._tails[workflow_id, key] = Tail(workflow_id, key, self._lookups, self._waiters)
        return tail

    def __len__(self) -> int:
        return len(self._tails)


def _size(values: Sequence[StreamValue]) -> int:
    return sum(len(value.payload) for value in values)
