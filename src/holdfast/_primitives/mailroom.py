"""Where the calls of one workflow wait that may take messages: recvs, and firsts with a recv among them.

Those that wait on one topic claim together, in the order of their calls: so none overtakes another [M7]. A
call on several topics ties these together: whoever can take from one of them is then decided in one batch,
still in the order of the calls. Knows what is waited for as data; what a message is, it does not know.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from holdfast._engine.submissions import Answers
from holdfast._observe import point
from holdfast._run.blocks import DeadlinePassed
from holdfast._run.operation import due_of, wait
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Claims, Code, Record, Undo
from holdfast._store.picks import Alternative, Offer, Pick, Picks, took_message

Look = Callable[[], Awaitable[Answer | None]]


class Place:
    """One call that waits; used as a context, outside of which it waits no more.

    `wanted`: its alternatives; None for a recv of a single topic. `topics`: those from which it may take.
    """

    __slots__ = (
        "answer",
        "due",
        "gone",
        "holding",
        "keys",
        "kind",
        "looked",
        "looking",
        "name",
        "number",
        "offer",
        "room",
        "step_id",
        "timeout",
        "topics",
        "wanted",
    )

    def __init__(
        self,
        run: Run,
        step_id: str,
        kind: str,
        name: str,
        timeout: float | None,
        topics: Sequence[str],
        keys: Sequence[str],
        wanted: Sequence[Alternative] | None = None,
    ) -> None:
        self.room = Mailroom.of(run)
        self.number: int = self.room.next_number()
        self.step_id = step_id
        self.kind = kind
        self.name = name
        self.timeout = timeout
        self.topics = topics
        self.keys = keys
        self.wanted = wanted
        self.offer: Offer | None = None
        """What this process has brought about for one of the alternatives."""
        self.answer: Answer | None = None
        self.due: float | None = None
        self.looked: int = 0
        """The number of the last look that was made for it."""
        self.looking: asyncio.Event | None = None
        """Set when the look that is being made for it is over."""
        self.gone: bool = False
        self.holding: asyncio.Event | None = None

    def __enter__(self) -> "Place":
        self.room.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.room.leave(self)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no look is made for this call, nor for those that it is tied to: they wait until it is
        ready, so that none overtakes it.
        """
        self.holding = ready = asyncio.Event()
        try:
            yield
        finally:
            self.holding = None
            ready.set()

    async def take(self, look: Look | None = None) -> Answer:
        """Waits until there is something to take, or the deadline has passed in the database.

        A call that is cancelled leaves nothing behind: what it took is given back before the cancellation
        goes on [M8].
        """
        try:
            return await wait(self.room.run, self.keys, look or self.look, self._ends)
        except asyncio.CancelledError:
            await self._leave_look()
            await self._give_back()
            raise
        except DeadlinePassed:
            if await self._leave_look():
                await self._give_back()
                raise asyncio.CancelledError from None
            if self.answer is None:
                raise
            return self.answer  # somebody else's look has served it at the last moment

    def _ends(self) -> float | None:
        return self.due

    async def look(self) -> Answer | None:
        """Has this call been served, now that the mailroom has looked?"""
        await self.room.look(self)
        return self.answer

    @property
    def claim(self) -> Claim:
        """As a claim, if it waits for a single topic and nothing else."""
        return Claim(step_id=self.step_id, kind=self.kind, name=self.name, timeout=self.timeout)

    @property
    def pick(self) -> Pick:
        """As a pick, whatever it waits for."""
        return Pick(
            step_id=self.step_id,
            kind=self.kind,
            name=self.name,
            timeout=self.timeout,
            wanted=self.wanted or (Alternative(kind="recv", names=tuple(self.topics)),),
            offer=self.offer,
        )

    async def _leave_look(self) -> bool:
        """No look is made for this call any more; the one on its way is waited for. Was the caller cancelled
        meanwhile?
        """
        self.gone = True
        cancelled = False
        while self.looking is not None:
            try:
                await self.looking.wait()
            except asyncio.CancelledError:
                cancelled = True
        return cancelled

    async def _give_back(self) -> None:
        answer = self.answer
        if answer is None:
            return
        if answer.code is Code.VALUE if self.wanted is None else took_message(self.wanted, answer):
            await give_back(self.room.run, self.step_id, self.keys)


class Mailroom:
    """The calls of one workflow that wait, by topic and in the order of the calls."""

    __slots__ = ("_begun", "_busy", "_number", "_places", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._places: dict[str, dict[int, Place]] = {}
        self._busy: dict[str, asyncio.Event] | None = None
        self._number = 0
        self._begun = 0

    @classmethod
    def of(cls, run: Run) -> "Mailroom":
        """The mailroom of a workflow, for as long as somebody waits in it."""
        room = run.mailroom
        if not isinstance(room, Mailroom):
            room = run.mailroom = cls(run)
        return room

    def next_number(self) -> int:
        """The number of the next call."""
        self._number += 1
        return self._number

    def enter(self, place: Place) -> None:
        """A call waits from now on, behind all that wait already."""
        for topic in place.topics:
            self._places.setdefault(topic, {})[place.number] = place

    def leave(self, place: Place) -> None:
        """The call waits no more."""
        for topic in set(place.topics):
            waiting = self._places[topic]
            del waiting[place.number]
            if not waiting:
                del self._places[topic]
        if not self._places and self.run.mailroom is self:
            self.run.mailroom = None

    async def look(self, place: Place) -> None:
        """Looks for a call and all whose turn it touches, unless a look that began after this call has been
        made for it meanwhile.
        """
        called = self._begun
        while place.answer is None and place.looked <= called and not place.gone:
            places, topics = self._tied(place)
            first = self._under_way(topics) or next((p.holding for p in places if p.holding), None)
            if first is None:
                await self._look(place, places, topics)
            else:
                await first.wait()

    def _tied(self, place: Place) -> tuple[list[Place], set[str]]:
        """All calls that may take a message which another of them could take, in the order of the calls; and
        their topics.
        """
        found = {place.number: place}
        topics: set[str] = set()
        unseen = list(place.topics)
        while unseen:
            topic = unseen.pop()
            if topic in topics:
                continue
            topics.add(topic)
            for number, other in self._places[topic].items():
                if other.answer is None and not other.gone and number not in found:
                    found[number] = other
                    unseen.extend(other.topics)
        return [found[number] for number in sorted(found)], topics

    def _under_way(self, topics: set[str]) -> asyncio.Event | None:
        """A look that is being made at one of these topics."""
        if not self._busy:
            return None
        return next((self._busy[topic] for topic in topics if topic in self._busy), None)

    async def _look(self, asking: Place, places: list[Place], topics: set[str]) -> None:
        self._begun += 1
        number, over = self._begun, asyncio.Event()
        if self._busy is None:
            self._busy = {}
        busy = self._busy
        busy.update(dict.fromkeys(topics, over))
        for place in places:
            place.looking = over
        point("recv.before_claim")
        try:
            await self.run.commit(
                self._record(places), lambda answers: self._received(number, asking, places, answers)
            )
        finally:
            for topic in topics:
                del busy[topic]
            if not busy:
                self._busy = None
            for place in places:
                place.looking = None
            over.set()

    def _record(self, places: list[Place]) -> Record:
        if all(place.wanted is None for place in places):
            return Claims(owner=self.run.owner, claims=[place.claim for place in places])
        return Picks(owner=self.run.owner, picks=[place.pick for place in places])

    def _received(self, number: int, asking: Place, places: list[Place], answers: Answers) -> None:
        waiters, turns = self.run.executor.waiters, self.run.turns
        for place, answer in zip(places, answers, strict=True):
            place.looked = number
            if answer.code is Code.WAIT:
                place.due = due_of(answer)
            elif answer.code is not Code.LOST:
                place.answer = answer
                # They wake one by one, and must go on in the order in which they were served.
                turns.reserve(place.step_id)
        # Those who are served by another's look wait for a bell that has rung already.
        served = [place for place in places if place.answer is not None and place is not asking]
        for key in dict.fromkeys(place.keys[0] for place in served):
            waiters.wake(key)


async def give_back(run: Run, step_id: str, keys: Sequence[str]) -> None:
    """Puts back the message that a call took whose caller has been cancelled [M8]."""
    if run.stopped:
        return
    if await run.executor.writer.insist(Undo(owner=run.owner, step_id=step_id)) is None:
        run.executor.give_up()
    run.turns.forget(step_id)
    for key in keys:
        run.executor.waiters.wake(key)
