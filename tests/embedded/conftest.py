"""Homes for servers that come and go, and processes that use them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.embedded import Embedded, find_binaries

USER = """
import sys
from holdfast.embedded import Embedded
embedded = Embedded(sys.argv[1], durable=False)
print(embedded.acquire(), flush=True)
sys.stdin.readline()
embedded.release()
"""


class User:
    """Another process that uses the server of a home until it is told to leave, or killed."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def dsn(self) -> str:
        """Waits until it has joined."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def postmaster(home: Path) -> int:
    """The process id of the server that runs, or 0."""
    try:
        pid = int((home / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return 0 if state.stdout.strip()[:1] in ("", "Z") else pid


def make_folder() -> Path:
    """A folder with a short path that every account can enter, unlike `tmp_path`; in memory if possible."""
    memory = "/dev/shm"  # noqa: S108
    folder = Path(
        tempfile.mkdtemp(prefix="hf-", dir=memory if os.access(memory, os.W_OK) else None)
    ).resolve()
    folder.chmod(0o755)
    return folder


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for homes; servers that a test leaves running in them are killed."""
    folder = make_folder()
    yield folder
    for home in [folder, *folder.iterdir()]:
        if pid := postmaster(home):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A home whose data is there already."""
    folder = make_folder()
    with Embedded(folder / "home", durable=False):
        pass
    yield folder / "home"
    shutil.rmtree(folder)


@pytest.fixture
def cold(place: Path) -> Path:
    """A home that does not exist yet."""
    return place / "home"


@pytest.fixture
def home(place: Path, template: Path) -> Path:
    """A home with data, in which no server runs."""
    subprocess.run(["cp", "-a", template, place / "home"], check=True)
    return place / "home"


@pytest.fixture
def start_user() -> Iterator[Callable[[Path], User]]:
    """Starts processes; those that are still there after the test are killed."""
    users: list[User] = []

    def start(home: Path) -> User:
        users.append(User(home))
        return users[-1]

    yield start
    for user in users:
        with contextlib.suppress(ValueError):  # its pipes are closed: it has left
            user.kill()


@pytest.fixture
def wrap_program(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
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
