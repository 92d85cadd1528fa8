"""Names that may be used, names that are refused before any I/O, and keys that never collide."""

from __future__ import annotations

import uuid
from enum import StrEnum
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import _clock, _keys
from holdfast.errors import InvalidName

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


class Topics(StrEnum):
    PAYMENT = "payment"


class FixedClock:
    def __init__(self, nanoseconds: int) -> None:
        self.nanoseconds = nanoseconds

    def monotonic(self) -> float:
        return self.nanoseconds / 1e9

    def time_ns(self) -> int:
        return self.nanoseconds


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a b",
        "ü",
        "a::b",
        "%s",
        "$1",
        "'; drop table",
        '"',
        "\u202eltr",
        "\ufeff",
        "ﬁ",
        "e\u0301",
        "\n",
        "🦀" * 64,
    ],
)
def test_k1_a_name_is_used_as_it_is(name: str) -> None:
    assert _keys.check_name(name, "topic") == name
    assert _keys.check_workflow_id(name) == name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("a\ud800", "lone surrogate"),
        ("x" * 257, "257 bytes"),
        ("ü" * 129, "258 bytes"),
        ("🦀" * 65, "260 bytes"),
    ],
)
def test_k1_a_name_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(InvalidName, match=complaint) as caught:
        _keys.check_name(name, "topic")
    assert str(caught.value).startswith("topic ")
    assert str(caught.value).isascii()


def test_k1_limits_are_bytes_of_utf8() -> None:
    assert _keys.check_name("ü" * 128, "key")
    assert _keys.check_workflow_id("x" * 512)
    assert _keys.check_workflow_id("ü" * 256)
    with pytest.raises(InvalidName, match="513 bytes"):
        _keys.check_workflow_id("x" * 513)
    with pytest.raises(InvalidName, match="514 bytes"):
        _keys.check_workflow_id("ü" * 257)


@pytest.mark.parametrize("name", [None, 3, b"a", ["a"]])
def test_k1_a_name_that_is_no_string_is_refused_with_a_hint(name: object) -> None:
    with pytest.raises(InvalidName, match=r"must be a str, not \w+; pass str"):
        _keys.check_workflow_id(name)  # type: ignore[arg-type]


def test_k1_a_subclass_of_str_becomes_a_plain_one() -> None:
    checked = _keys.check_name(Topics.PAYMENT, "topic")
    assert type(checked) is str
    assert checked == "payment"


@given(name=NAMES)
def test_k1_whatever_fits_is_accepted_and_nothing_else(name: str) -> None:
    if len(name.encode()) <= _keys.MAX_NAME:
        assert _keys.check_name(name, "topic") is name
    else:
        with pytest.raises(InvalidName):
            _keys.check_name(name, "topic")


def test_n3_a_key_is_the_hash_that_sql_makes() -> None:
    parts = b"\0\0\0\7message" + b"\0\0\0\3w-1" + b"\0\0\0\2\xc3\xbc"
    assert _keys.wake_key("message", "w-1", "ü") == sha256(parts).hexdigest()[:16]
    assert _keys.wake_key("end", "w") == "79f35c26218b9b5f"
    assert _keys.wake_key("end", "w") == _keys.wake_key("end", "w", "")


@given(first=st.tuples(NAMES, NAMES, NAMES), second=st.tuples(NAMES, NAMES, NAMES))
def test_k1_two_things_share_a_key_only_if_they_are_the_same(
    first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    assert (_keys.wake_key(*first) == _keys.wake_key(*second)) == (first == second)


def test_k1_separators_in_names_do_not_collide() -> None:
    assert _keys.wake_key("message", "a::b", "c") != _keys.wake_key("message", "a", "b::c")
    assert _keys.wake_key("message", "ab", "c") != _keys.wake_key("message", "a", "bc")
    assert _keys.wake_key("event", "a", "b") != _keys.wake_key("stream", "a", "b")


def test_n3_the_longest_names_fit_a_bell() -> None:
    assert len(_keys.wake_key("message", "x" * 512, "y" * 256)) == 16
    assert len(_keys.channel("s" * 63)) < 63
    assert _keys.channel("a") != _keys.channel("b")


def test_w8_a_child_is_named_after_its_parent_and_the_call() -> None:
    assert _keys.child_id("order-7", "5.0.2") == "order-7/5.0.2"


@pytest.mark.parametrize("parent", ["x" * 511, "ü" * 255 + "x"])
def test_w8_a_child_whose_id_would_be_too_long_asks_for_one(parent: str) -> None:
    with pytest.raises(InvalidName, match="id= of its own"):
        _keys.child_id(parent, "3")


def test_new_ids_are_uuids_in_the_order_of_time() -> None:
    made = []
    for nanoseconds in (1_700_000_000_000_000_000, 1_700_000_000_000_300_000, 1_700_000_000_001_000_000):
        uninstall = _clock.install(FixedClock(nanoseconds))
        made.append(_keys.new_workflow_id())
        uninstall()
    assert made == sorted(made)
    assert all(uuid.UUID(each).version == 7 and str(uuid.UUID(each)) == each for each in made)
    assert uuid.UUID(made[0]).int >> 80 == 1_700_000_000_000
    assert len({_keys.new_workflow_id() for _ in range(1000)}) == 1000
