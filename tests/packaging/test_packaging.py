"""What is built is what is promised: sdist and wheel, installed where nothing of the checkout is in reach."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

from holdfast._sql import statements

ROOT = Path(__file__).parents[2]
SQL = sorted(path.relative_to(ROOT / "sql") for path in (ROOT / "sql").rglob("*.sql"))

LOAD_EVERYTHING = """
import importlib.metadata, sys
import holdfast
from holdfast._sql import statements

root = statements.directory()
assert root.parts[-3:] == ("holdfast", "_sql", "files"), root
loaded = statements.load("elsewhere")
for name in loaded:
    assert loaded[name] and loaded.promise(name), name
for kind in (statements.migrations, statements.functions):
    assert kind("elsewhere"), kind
assert holdfast.__all__
assert not {"rich", "cronsim", "pytest", "testcontainers"} & set(sys.modules)
print(len(loaded))
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", into, source)
    (built,) = into.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has it
        archive.extractall(folder)  # noqa: S202 - made by the fixture before
    (only,) = folder.iterdir()
    return only


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and its core dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=folder)
    return python


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_sql_file_once(wheel: Path) -> None:
    inside = {name for name in names(wheel) if name.endswith(".sql")}
    assert inside == {f"holdfast/_sql/files/{path.as_posix()}" for path in SQL}


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in names(wheel)} == {"holdfast"}
    assert "holdfast/py.typed" in names(wheel)


def test_a_wheel_made_from_the_sdist_is_the_same(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    assert names(build("wheel", unpacked, tmp_path)) == names(wheel)


def test_the_sdist_brings_its_tests_and_papers(unpacked: Path) -> None:
    papers = ("README.md", "LICENSE", "CHANGELOG.md", "sql/README.md")
    for name in (*papers, "tests/packaging/test_packaging.py", "noxfile.py", ".ci/run"):
        assert (unpacked / name).is_file(), name


def test_the_core_needs_three_packages(metadata: Message) -> None:
    core = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.partition(">")[0] for line in core) == ["anyio", "asyncpg", "msgspec"]
    assert set(metadata.get_all("Provides-Extra", [])) >= {"embedded", "cli", "schedule", "otel", "test"}


def test_the_installed_wheel_loads_every_statement(installed: Path, tmp_path: Path) -> None:
    loaded = run(installed, "-I", "-W", "error", "-c", LOAD_EVERYTHING, cwd=tmp_path)
    assert int(loaded) == len(statements.load())


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    assert "migrate" in run(installed.with_name("holdfast"), "--help", cwd=tmp_path)


def test_a_checkout_reads_its_own_sql_folder() -> None:
    assert statements.directory() == ROOT / "sql"


def _commands(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.startswith("python3 -m venv .venv && "))


def test_the_gate_runs_what_the_readme_says() -> None:
    in_readme = [line for line in _commands((ROOT / "README.md").read_text()) if line.endswith("/pytest")]
    in_gate = [line.removesuffix(" || exit") for line in _commands((ROOT / ".ci" / "run").read_text())]
    assert in_readme
    assert set(in_readme) == set(in_gate)
