"""Where a page of a list ends, as an opaque word: the keys of its last row, which cannot go stale."""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_cursor(moment: datetime, workflow_id: str) -> str:
    """The word for a row.

    Example:
        >>> from_cursor(to_cursor(datetime(2026, 1, 2, tzinfo=UTC), "order-17"))[1]
        'order-17'
    """
    place = f"{(moment - _EPOCH) // _MICROSECOND}:{workflow_id}"
    return base64.urlsafe_b64encode(place.encode()).decode()


def from_cursor(cursor: str) -> tuple[datetime, str]:
    """The row that a word stands for.

    Raises:
        ValueError: if it was not made by `to_cursor`.
    """
    try:
        moment, colon, workflow_id = base64.b64decode(cursor, b"-_", validate=True).decode().partition(":")
        if colon and workflow_id and "\0" not in workflow_id:
            return _EPOCH + int(moment) * _MICROSECOND, workflow_id
    except (TypeError, ValueError, OverflowError, binascii.Error):
        pass  # the error below says more
    raise ValueError("a cursor is what `.cursor` of an earlier page was, and this was none")
