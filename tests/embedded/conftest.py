"""Homes for servers that come and go, and processes that use them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.embedded import Embedded, find_binaries
from tests.embedded.homes import StartUser, User, WrapProgram, copy_home, make_folder, remove_folder


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for homes; servers that a test leaves running in them are killed."""
    folder = make_folder()
    yield folder
    remove_folder(folder)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A home whose data is there already."""
    folder = make_folder()
    with Embedded(folder / "home", durable=False):
        pass
    yield folder / "home"
    remove_folder(folder)


@pytest.fixture
def cold(place: Path) -> Path:
    """A home that does not exist yet."""
    return place / "home"


@pytest.fixture
def home(place: Path, template: Path) -> Path:
    """A home with data, in which no server runs."""
    return copy_home(template, place / "home")


@pytest.fixture
def start_user() -> Iterator[StartUser]:
    """Starts processes; those that are still there after the test are killed."""
    users: list[User] = []

    def start(home: Path, uid: int | None = None) -> User:
        users.append(User(home, uid))
        return users[-1]

    yield start
    for user in users:
        with contextlib.suppress(ValueError):  # its pipes are closed: it has left
            user.kill()


@pytest.fixture
def wrap_program(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WrapProgram]:
    """Runs a shell script before one of PostgreSQL's programs, the first time it is called."""

    folder = Path(tempfile.mkdtemp())  # not in memory, where nothing may be executed in a container
    folder.chmod(0o755)

    def wrap(program: str, script: str) -> None:
        binaries = find_binaries()
        for path in binaries.iterdir():
            (folder / path.name).symlink_to(path)
        wrapper, used = folder / program, place / "used"
        wrapper.unlink()
        wrapper.write_text(
            f'#!/bin/sh\nreal={binaries / program}\ncase "$1" in --version) exec "$real" "$@";; esac\n'
            f'if mkdir {used} 2>/dev/null; then\n{script}\nfi\nexec "$real" "$@"\n'
        )
        wrapper.chmod(0o755)
        place.chmod(0o777)  # the script may run as somebody else, and leaves `used` behind
        monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(folder))

    yield wrap
    shutil.rmtree(folder)
