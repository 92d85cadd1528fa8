"""Every benchmark runs, and says what it should: with a tiny size, so its numbers mean nothing here."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(path.name for path in BENCHMARKS.glob("[!_]*.py"))


def test_one_question_per_file() -> None:
    assert FILES == ["latency.py", "pingpong.py", "recovery.py", "throughput.py", "waiting.py"]


@pytest.mark.parametrize("name", FILES)
async def test_runs_and_reports(name: str, empty_dsn: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(BENCHMARKS / name),
        *("--tiny", "--dsn", empty_dsn, "--json", str(report)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()

    found = json.loads(report.read_text())
    assert found["benchmark"] == Path(name).stem
    assert found["size"] == "tiny"
    assert {"system", "cores"} <= found["machine"].keys()
    assert {"python", "asyncpg"} <= found["versions"].keys()
    assert {"version", "fsync"} <= found["server"].keys()
    assert found["rows"], "nothing was measured"
    for row in found["rows"]:
        assert row["samples"], row["name"]
        assert row["value"] >= 0, row
        assert row["better"] in ("more", "less")
        assert row["met"] is None or row["aim"] is not None
