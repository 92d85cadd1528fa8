"""The plain values users get to see: statuses, rows of the lists, stream items, and the codec's contract.

No behaviour beyond reading themselves. Their `repr` leaves out whatever may hold a piece of a payload [K4].
"""

from collections.abc import Iterable
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar

import msgspec

__all__ = [
    "MISSING",
    "Item",
    "MessageInfo",
    "Missing",
    "Page",
    "PayloadCodec",
    "PayloadContext",
    "Status",
    "StepInfo",
    "StreamInfo",
    "WorkflowStatus",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Missing(Enum):
    """The type of `MISSING`: tells "no default given" from a default of `None`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final[Literal[Missing.MISSING]] = Missing.MISSING


class Status(StrEnum):
    """Where a workflow stands. In the database it is a small integer, `.code`."""

    ENQUEUED = "ENQUEUED"
    DELAYED = "DELAYED"
    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"
    QUARANTINED = "QUARANTINED"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"there is no status {value!r}; there are {', '.join(cls)}")

    @property
    def active(self) -> bool:
        """Whether the workflow runs or will run by itself: ENQUEUED, DELAYED or PENDING."""
        return self in _ACTIVE

    @property
    def code(self) -> int:
        """The number stored in the database, 0 to 6 in the order of definition."""
        return _CODES[self]

    @classmethod
    def from_code(cls, code: int) -> Self:
        """The status with this number.

        Raises:
            ValueError: if there is none.
        """
        if not 0 <= code < len(_STATUSES):
            raise ValueError(f"no status has the code {code}")
        return cls(_STATUSES[code])


_STATUSES: Final = tuple(Status)
_CODES: Final = {status: code for code, status in enumerate(_STATUSES)}
_ACTIVE: Final = frozenset({Status.ENQUEUED, Status.DELAYED, Status.PENDING})


class WorkflowStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows about one workflow, at one moment. Times are aware, by the database's clock."""

    id: str
    name: str
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    executor: str | None = None
    """Name of the process that runs it, or ran it last."""
    attempts: int = 0
    """How often it was claimed by a process, the first time included."""
    queue: str | None = None
    error: str | None = None
    """Type and text of the error it ended with."""
    attributes: dict[str, Any] | None = None
    cancelling: bool = False
    """Cancelled, with its clean-up still running [W10]."""
    parent: str | None = None
    """Id of the workflow that started it as a child."""

    def __repr__(self) -> str:
        return f"WorkflowStatus(id={self.id!r}, name={self.name!r}, status={self.status.value})"


class Page(tuple[T_co, ...], Generic[T_co]):
    """A part of a list. `cursor` is what to ask with for the part that follows, None at the end."""

    cursor: str | None

    def __new__(cls, rows: Iterable[T_co], cursor: str | None = None) -> Self:
        page = super().__new__(cls, rows)
        page.cursor = cursor
        return page


class StepInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One durable call in the journal of a workflow. `finished_at` is `None` while it waits."""

    step_id: str
    kind: str
    name: str
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None

    def __repr__(self) -> str:
        return f"StepInfo(step_id={self.step_id!r}, kind={self.kind!r}, name={self.name!r})"


class MessageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One message in the mailbox of a workflow, consumed or not [M10]."""

    topic: str | None
    sender: str | None
    """Id of the workflow that sent it; `None` if it came from outside."""
    created_at: datetime
    consumed_by: str | None = None
    """Step id of the `recv` that took it; `None` if it waits to be taken."""
    id: int = 0
    """Larger than that of every message sent before it; where `messages(after=…)` goes on."""


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of a workflow: how many values it keeps and whether its writer closed it."""

    name: str
    length: int
    closed: bool


class Item(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One value of a stream with its place: `offset` counts from 0 without holes.

    `attempt` is the try of the step that wrote it, from 1; values written by the workflow itself have 1 [S2].
    """

    value: T
    offset: int
    attempt: int = 1

    def __repr__(self) -> str:
        return f"Item(offset={self.offset}, attempt={self.attempt})"


class PayloadContext(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a stored payload, as a `Settings.codec` sees it [K3].

    `kind` is what the payload is ("input", "output", "error", "message", "event", "stream", ...), `name` the
    topic, key, stream, step or workflow it belongs to.
    """

    schema: str
    workflow_id: str
    kind: str
    name: str


class PayloadCodec(Protocol):
    """What `Settings.codec` must be: bytes to bytes, for encryption or compression [K3].

    `decode(encode(data, context), context)` must give `data` back, in any process and for as long as the row
    lives; the context is the same both times, in a fork too. Both run on the event loop: keep them fast, and
    fetch keys before. `Settings.max_payload` limits the JSON that `encode` is given; what it makes of that
    may take 32 MiB.

    What either raises is the fault of the process, not of the payload: outside it is a `PayloadCodecError`;
    a workflow is parked, and goes on in a process whose codec fits. A `PayloadDecodeError` that `decode`
    raises itself is the payload's fault, and an answer that a workflow sees and records.

    `decode` is also given what no codec has made: JSON from SQL functions, or from before there was a codec.
    It may return it as it is, if it can tell; what it raises then is a `PayloadDecodeError`.
    """

    def encode(self, data: bytes, context: PayloadContext, /) -> bytes:
        """Turn JSON into what is stored."""
        ...

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        """Turn what is stored back into JSON."""
        ...
