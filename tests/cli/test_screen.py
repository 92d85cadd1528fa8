"""The same lines for a terminal with rich, for one without, and for a pipe."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from holdfast.cli.screen import Screen

ROWS: list[dict[str, Any]] = [
    {"id": "a1", "status": "SUCCESS", "more": 1},
    {"id": "b[2]", "status": "ERROR", "more": None},
]
COLUMNS = {"id": "id", "status": "status"}
TABLE = "ID    STATUS\na1    SUCCESS\nb[2]  ERROR\n"


def test_a_pipe_gets_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    Screen(json=False).rows(ROWS, COLUMNS)
    assert capsys.readouterr().out == TABLE


def test_without_rich_it_is_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    Screen(json=False).rows(ROWS, COLUMNS)
    assert capsys.readouterr().out == TABLE


def test_a_terminal_gets_colours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Screen(json=False).rows(ROWS, COLUMNS)
    assert "\x1b[32mSUCCESS" in capsys.readouterr().out


def test_json_has_all_that_is_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(json=True)
    screen.rows(ROWS, COLUMNS)
    screen.talk("nobody reads this")
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == '{"id":"a1","status":"SUCCESS","more":1}'
    assert said.err == ""
