"""What the tests need to know of homes and of the processes that use them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

USER = """
import os, sys
from holdfast.embedded import Embedded
home, uid = sys.argv[1:]
if uid:  # only now, as the interpreter may lie where that user cannot read it
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
embedded = Embedded(home, durable=False)
print(embedded.acquire(), flush=True)
sys.stdin.readline()
embedded.release()
"""


class User:
    """Another process that uses the server of a home until it is told to leave, or killed."""

    def __init__(self, home: Path, uid: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home), "" if uid is None else str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def dsn(self) -> str:
        """Waits until it has joined; empty if it has ended instead."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


class StartUser(Protocol):
    def __call__(self, home: Path, uid: int | None = None) -> User: ...


WrapProgram: TypeAlias = Callable[[str, str], None]
"""Takes the name of a program and a shell script."""


def make_folder() -> Path:
    """A folder with a short path that every account can enter, unlike `tmp_path`; in memory if possible."""
    memory = Path("/dev/shm")  # noqa: S108
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= 1 << 30
    folder = Path(tempfile.mkdtemp(prefix="hf-", dir=memory if roomy else None)).resolve()
    folder.chmod(0o755)
    return folder


def remove_folder(folder: Path) -> None:
    """With the servers that a test has left running in it."""
    for home in [folder, *folder.iterdir()]:
        if pid := postmaster(home):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def copy_home(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", source, target], check=True)
    return target


def postmaster(home: Path) -> int:
    """The process id of the server that runs, or 0."""
    try:
        pid = int((home / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return 0 if state.stdout.strip()[:1] in ("", "Z") else pid


def kill_server(home: Path) -> None:
    pid = postmaster(home)
    assert pid  # 0 would be all of us
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not postmaster(home))


def log_of(home: Path) -> str:
    return "".join(path.read_text() for path in home.glob("log*"))


def drafts_of(home: Path) -> list[Path]:
    return [*home.parent.glob("*.new-*"), *home.glob("*.new-*")]


def wait_for(condition: Callable[[], bool]) -> None:
    """For what another process does: nothing tells us, so we look."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
