"""Every program in the README runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def _title(block: str) -> str:
    found = re.search(r"async def (?!main)(\w+)", block)
    return found[1] if found else "client"


def _load(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - it is our own text
    return names


@pytest.mark.parametrize("block", [b for b in BLOCKS if "async def main" in b], ids=_title)
async def test_a_program_runs(
    block: str, dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", dsn)
    await _load(block)["main"]()
    said = capsys.readouterr().out.splitlines()
    for promised in re.findall(r"print\(.*?\)\s+# ([\[{']?[\w\[{'].*)$", block, re.MULTILINE):
        assert promised.partition(" again")[0] in said


@pytest.mark.parametrize("block", [b for b in BLOCKS if "async def test_" in b], ids=_title)
async def test_the_tests_pass(block: str, dsn: str) -> None:
    tests = {name: test for name, test in _load(block).items() if name.startswith("test_")}
    assert tests
    for test in tests.values():
        assert list(inspect.signature(test).parameters) == ["holdfast_dsn"]
        await test(dsn)


def test_the_one_file_is_an_app() -> None:
    (block,) = [b for b in BLOCKS if "FastAPI(" in b]
    assert {"/checkout/{key}", "/webhook/{key}"} <= {route.path for route in _load(block)["app"].routes}


def test_each_block_was_run() -> None:
    assert len(BLOCKS) == sum(
        "async def main" in b or "async def test_" in b or "FastAPI(" in b for b in BLOCKS
    )


def test_what_it_points_to_is_there() -> None:
    pointed = re.findall(r"\]\((?!http)([^)#\"]+)\)", README)
    assert pointed
    assert [path for path in pointed if not (ROOT / path).exists()] == []
