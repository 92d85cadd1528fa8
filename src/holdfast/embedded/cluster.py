"""One data directory, its socket and its server: creates it, starts it, waits for it, stops it.

Every function expects that nobody else does the same at this moment; `sharing` sees to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from holdfast.embedded.accounts import Account, Answer, execute
from holdfast.embedded.binaries import find_for, major_of
from holdfast.errors import ConfigurationError

__all__ = ["Cluster"]

_PATIENCE: Final = 60.0
"""Seconds for a server to come up, crash recovery included, or to go down."""

_ATTEMPTS: Final = 3
"""More than one, as a server may be killed before it is used; few, as most reasons stay."""

_PORT: Final = 5432
_SOCKET: Final = f".s.PGSQL.{_PORT}"

_PROCESSES: Final = Path("/proc")
"""Where Linux tells of processes; macOS has no such place."""

_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # In files beside the data: a container's /dev/shm is small, and systemd empties it when a user logs out.
    "dynamic_shared_memory_type": "mmap",
    # The end of the log gets into error messages, so what holds data must not get into the log.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
# A commit still goes to the kernel, so that it survives a kill -9 of the server.
_FORGETFUL: Final = {"fsync": "off", "full_page_writes": "off"}


_TOLD: Final = re.compile(r"\b(LOG|FATAL|PANIC|HINT):  (?!the database system is )")
"""Lines of the log that tell why; not what it answered to those who came too early."""


class _Postmaster(NamedTuple):
    """What a server says about itself in its lock files."""

    pid: int
    data: str
    sockets: Path | None

    @property
    def exists(self) -> bool:
        return self.pid > 1 and _exists(self.pid)

    @property
    def alive(self) -> bool:
        """Not gone, not a zombie, not a stranger who got its number."""
        return self.exists and bool(self.data) and self.data in _command(self.pid)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster in `base`, which exists, and whose server `account` can reach it and has to run it."""

    base: Path
    account: Account | None
    durable: bool
    options: Mapping[str, str]

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def log(self) -> Path:
        return self.base / "log"

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self._sockets()))}&port={_PORT}"

    def start(self) -> None:
        """Returns once the server accepts connections; does nothing if it does already.

        Raises:
            ConfigurationError: if it cannot be run; with the end of its log.
        """
        if self._settled():
            return
        exists = self.data.exists()
        binaries = find_for(self.account, _recorded_major(self.data) if exists else None)
        if not exists:
            self._create(binaries)
        self._private(self._sockets())
        self._launch(binaries)

    def stop(self) -> None:
        """Returns once the server is gone; sessions that still run are ended.

        Raises:
            ConfigurationError: if it does not go.
        """
        # PostgreSQL 18 can hang for ever in a shutdown that comes amid the restart after a session's crash.
        if not self._settled():
            return
        postmaster, sockets = self._postmaster(), self._sockets()
        if not postmaster.alive:
            return  # somebody removed its lock file; it notices that, and ends
        if not (_ended(postmaster, signal.SIGINT) or _ended(postmaster, signal.SIGQUIT)):
            raise ConfigurationError(f"PostgreSQL in {self.base} does not stop: {self._tail()}")
        with contextlib.suppress(OSError):  # somebody put something into it
            sockets.rmdir()

    def _create(self, binaries: Path) -> None:
        for abandoned in self.base.glob("data.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # Under another name first: killed anywhere, a data directory is a whole one or none.
        draft = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.base))
        self._hand_over(draft)
        answer = self._run(binaries / "initdb", "-D", draft, *self._initdb_arguments(binaries))
        if answer.code:
            shutil.rmtree(draft, ignore_errors=True)
            raise ConfigurationError(
                f"PostgreSQL cannot create its data in {self.base}: {answer.text[-2000:]}"
            )
        draft.rename(self.data)
        if self.durable:
            _sync(self.base)

    def _initdb_arguments(self, binaries: Path) -> list[str]:
        arguments = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        if (major_of(binaries, self.account) or 0) >= 17:
            arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return arguments if self.durable else [*arguments, "--no-sync"]

    def _launch(self, binaries: Path) -> None:
        deadline = time.monotonic() + _PATIENCE
        for attempt in itertools.count(1):
            self._clear_strangers()
            answer = self._pg_ctl_start(binaries)
            if self._settled():
                return
            reason = self._tail() or answer.text[-2000:]
            # Sessions of a server that was killed take their time to notice; until then the next one refuses.
            refused = "pre-existing shared memory block" in reason and time.monotonic() < deadline
            if not refused and attempt >= _ATTEMPTS:
                raise ConfigurationError(f"PostgreSQL does not start in {self.base}: {reason}")
            time.sleep(0.1)

    def _pg_ctl_start(self, binaries: Path) -> Answer:
        settings = {
            **_SETTINGS,
            **({} if self.durable else _FORGETFUL),
            **self.options,
            "port": str(_PORT),
            "unix_socket_directories": str(self._sockets()),
        }
        options = " ".join(shlex.quote(f"--{name}={value}") for name, value in settings.items())
        self._new_log()
        start = ("-D", self.data, "-l", self.log, "-o", options, "-w", "-t", f"{_PATIENCE:.0f}", "start")
        return self._run(binaries / "pg_ctl", *start)

    def _settled(self) -> bool:
        """Whether the server accepts connections, once it is neither coming up nor going down."""
        deadline = time.monotonic() + _PATIENCE
        while (answer := _knock(self._sockets() / _SOCKET)) != "ready":
            if answer == "silent" and not self._postmaster().alive:
                return False
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"PostgreSQL runs in {self.base} but does not answer: {self._tail()}"
                )
            time.sleep(0.01)
        return True

    def _clear_strangers(self) -> None:
        """Removes lock files that name somebody else's process: PostgreSQL only asks whether it exists.

        Those of a process that is gone it sees through itself, and then looks for sessions left over.
        """
        for path in (self.data / "postmaster.pid", self._sockets() / f"{_SOCKET}.lock"):
            holder = _holder(path)
            if holder.exists and not holder.alive:
                path.unlink(missing_ok=True)

    def _postmaster(self) -> _Postmaster:
        return _holder(self.data / "postmaster.pid")

    def _sockets(self) -> Path:
        """Where a server that runs says its socket is; the path can have changed if the home was renamed."""
        postmaster = self._postmaster()
        if postmaster.sockets and postmaster.alive:
            return postmaster.sockets
        # There is room for 103 bytes on macOS and 107 on Linux, and a comma would part two hosts.
        inside = self.base / "run"
        if len(str(inside)) <= 80 and re.fullmatch(r"[\w./-]+", str(inside), re.ASCII):
            return inside
        digest = hashlib.sha256(os.fsencode(self.base)).hexdigest()[:16]
        return Path("/tmp") / f"holdfast-{digest}"  # noqa: S108 - checked by `_private`, and no TMPDIR moves it

    def _private(self, folder: Path) -> None:
        """Makes `folder` if it is missing, for the server alone: whoever gets in is its superuser."""
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid == os.geteuid():
            self._hand_over(folder)
        owners = {os.geteuid(), self.account.uid if self.account else os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
            raise ConfigurationError(
                f"{folder} has to be a folder of ours that nobody else can enter; remove it"
            )

    def _new_log(self) -> None:
        if self.log.exists():
            self.log.replace(self.base / "log.1")
        self.log.touch(mode=0o600)
        self._hand_over(self.log)

    def _hand_over(self, path: Path) -> None:
        if self.account:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def _tail(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join([line for line in lines if _TOLD.search(line)][-10:])

    def _run(self, *command: str | Path) -> Answer:
        return execute(command, timeout=2 * _PATIENCE, account=self.account)


def _holder(path: Path) -> _Postmaster:
    try:
        pid, data, _started, _port, sockets, *_ = [*os.fsdecode(path.read_bytes()).splitlines(), *[""] * 5]
        return _Postmaster(int(pid), data, Path(sockets) if sockets else None)
    except (OSError, ValueError):
        return _Postmaster(0, "", None)


def _recorded_major(data: Path) -> int:
    try:
        return int((data / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationError(f"{data} is not a data directory of PostgreSQL; move it away") from error


def _sync(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _knock(path: Path) -> Literal["ready", "busy", "silent"]:
    """Asks for a session: any other answer is also given by a server that is still coming up."""
    parameters = b"user\0postgres\0database\0postgres\0\0"
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        try:
            caller.connect(str(path))
            caller.sendall((8 + len(parameters)).to_bytes(4) + (3 << 16).to_bytes(4) + parameters)
            answer = caller.recv(4096)
        except TimeoutError:
            return "busy"
        except OSError:
            return "silent"
    if not answer:
        return "silent"
    # 57P03 is cannot_connect_now; any other refusal comes from a server that is up.
    return "busy" if answer.startswith(b"E") and b"C57P03\0" in answer else "ready"


def _ended(postmaster: _Postmaster, way: signal.Signals) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(postmaster.pid, way)
    deadline = time.monotonic() + _PATIENCE
    while postmaster.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


def _command(pid: int) -> str:
    """The command line of a process; nothing for a zombie."""
    if _PROCESSES.is_dir():
        try:
            return os.fsdecode((_PROCESSES / str(pid) / "cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            return ""
    answer = execute(["ps", "-ww", "-o", "stat=", "-o", "command=", "-p", str(pid)], timeout=10)
    return "" if answer.text.startswith("Z") else answer.text
