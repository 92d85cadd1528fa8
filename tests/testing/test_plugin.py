"""The plugin as users have it: installed, under whatever drives their event loop."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.testing.postgres import Server

SUITE = """
import asyncpg, pytest
{backend}
async def look(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("select count(*) from holdfast.workflows")
    finally:
        await connection.close()

{mark}
@pytest.mark.parametrize("n", range(3))
async def test_async(holdfast_dsn, n):
    assert await look(holdfast_dsn) == 0

{mark}
async def test_factory(holdfast_database, holdfast_server):
    assert holdfast_server.kind == "url"
    assert len({{holdfast_database(), holdfast_database(), holdfast_database(migrated=False)}}) == 3

def test_sync(holdfast_dsn):
    import asyncio
    assert asyncio.run(look(holdfast_dsn)) == 0
"""
ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function", "-o")


def run(folder: Path, server: Server, *options: str, mark: str = "", backend: str = "") -> str:
    (folder / "test_suite.py").write_text(SUITE.format(mark=mark, backend=backend))
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *registration(), *options],
        cwd=folder,
        env=os.environ | {"HOLDFAST_TEST_SERVER": "url", "HOLDFAST_TEST_DATABASE_URL": server.dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.stdout + finished.stderr


def registration() -> tuple[str, ...]:
    """An installed holdfast is known to pytest by its entry point, a bare checkout is not."""
    known = [entry.value for entry in importlib.metadata.entry_points(group="pytest11")]
    return () if "holdfast.testing.plugin" in known else ("-p", "holdfast.testing.plugin")


def test_pytest_asyncio_strict(tmp_path: Path, holdfast_server: Server) -> None:
    options = (*ASYNCIO, "asyncio_mode=strict")
    assert "5 passed" in run(tmp_path, holdfast_server, *options, mark="@pytest.mark.asyncio")


def test_pytest_asyncio_auto(tmp_path: Path, holdfast_server: Server) -> None:
    assert "5 passed" in run(tmp_path, holdfast_server, *ASYNCIO, "asyncio_mode=auto")


def test_anyio(tmp_path: Path, holdfast_server: Server) -> None:
    output = run(tmp_path, holdfast_server, "-p", "no:asyncio", mark="@pytest.mark.anyio", backend=ANYIO)
    assert "5 passed" in output


@pytest.mark.skipif(not importlib.util.find_spec("xdist"), reason="pytest-xdist is not installed")
def test_xdist(tmp_path: Path, holdfast_server: Server) -> None:
    assert "5 passed" in run(tmp_path, holdfast_server, *ASYNCIO, "asyncio_mode=auto", "-n2")


def test_it_imports_little() -> None:
    """It is imported in every run of pytest, wanted or not."""
    script = "import sys, holdfast.testing.plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "holdfast.testing.databases" not in loaded
    assert "testcontainers" not in loaded
