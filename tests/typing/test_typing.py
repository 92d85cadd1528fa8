"""Type checkers accept what is right and refuse what is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def errors_of(name: str, tmp_path: Path) -> set[tuple[int, str]]:
    """(line, code) of everything that mypy says of a file."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    output, trouble, _ = api.run(
        [
            "--strict",
            "--no-error-summary",
            f"--cache-dir={tmp_path}",
            f"--python-executable={sys.executable}",
            str(HERE / name),
        ]
    )
    assert not trouble
    found = re.findall(rf"{name}:(\d+): error: .*\[([a-z-]+)\]$", output, re.MULTILINE)
    return {(int(line), code) for line, code in found}


def test_what_is_right_is_accepted(tmp_path: Path) -> None:
    assert errors_of("right.py", tmp_path) == set()


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    lines = (HERE / "wrong.py").read_text().splitlines()
    expected = {
        (number, found[1])
        for number, line in enumerate(lines, 1)
        if (found := re.search(r"# error: ([a-z-]+)$", line))
    }
    assert errors_of("wrong.py", tmp_path) == expected
