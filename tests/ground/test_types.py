"""Statuses and the values of the lists."""

from __future__ import annotations

import datetime as dt

import pytest

from holdfast.types import MISSING, Item, MessageInfo, Missing, Status, StepInfo, WorkflowStatus

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_s4_active_are_the_first_three() -> None:
    assert [status for status in Status if status.active] == ["ENQUEUED", "DELAYED", "PENDING"]


def test_a_status_has_a_number_in_the_database() -> None:
    assert [status.code for status in Status] == [0, 1, 2, 3, 4, 5, 6]
    assert [Status.from_code(code).value for code in range(7)] == [
        "ENQUEUED",
        "DELAYED",
        "PENDING",
        "SUCCESS",
        "ERROR",
        "CANCELLED",
        "QUARANTINED",
    ]


@pytest.mark.parametrize("code", [-1, 7])
def test_a_number_without_a_status_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="no status"):
        Status.from_code(code)


def test_k4_no_repr_shows_what_may_be_a_payload() -> None:
    shown = [
        Item(value="hunter2", offset=3, attempt=2),
        WorkflowStatus(
            id="w",
            name="n",
            status=Status.ERROR,
            created_at=NOW,
            error="ValueError: hunter2",
            attributes={"a": "hunter2"},
        ),
        StepInfo(step_id="1", kind="step", name="s", error="ValueError: hunter2"),
        MessageInfo(topic="t", sender=None, created_at=NOW),
    ]
    assert "hunter2" not in repr(shown)
    assert repr(shown[0]) == "Item(offset=3, attempt=2)"


def test_values_are_frozen() -> None:
    item = Item(value=1, offset=0)
    with pytest.raises(AttributeError):
        item.offset = 1  # type: ignore[misc]


def test_missing_is_one_value() -> None:
    assert MISSING is Missing.MISSING
    assert repr(MISSING) == "MISSING"
