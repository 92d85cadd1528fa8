"""Points and signals: nothing without a hook, everything with one."""

from __future__ import annotations

import pytest

from holdfast import _observe


def test_points_and_signals_are_silent_by_themselves() -> None:
    _observe.point("nobody.listens")
    _observe.signal("nobody.listens", count=3)


def test_a_hook_sees_points_until_it_is_uninstalled() -> None:
    seen: list[str] = []
    uninstall = _observe.install(seen.append)
    _observe.point("a")
    uninstall()
    _observe.point("b")
    assert seen == ["a"]


def test_a_hook_may_break_what_it_watches() -> None:
    def fail(name: str) -> None:
        raise ConnectionError(name)

    uninstall = _observe.install(fail)
    with pytest.raises(ConnectionError, match=r"writer\.before_commit"):
        _observe.point("writer.before_commit")
    uninstall()


def test_subscribers_see_signals_with_their_facts() -> None:
    one: list[tuple[str, dict[str, object]]] = []
    two: list[tuple[str, dict[str, object]]] = []
    leave_one = _observe.subscribe(lambda name, facts: one.append((name, facts)))
    leave_two = _observe.subscribe(lambda name, facts: two.append((name, facts)))
    _observe.signal("committed", records=3)
    leave_one()
    _observe.signal("committed", records=4)
    leave_two()
    assert one == [("committed", {"records": 3})]
    assert two == [("committed", {"records": 3}), ("committed", {"records": 4})]
