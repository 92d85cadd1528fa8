"""Whom PostgreSQL runs as, and running programs as them.

PostgreSQL refuses to run as root. When this process is root, the server gets an account without rights, and
what it works with has to lie where that account can reach it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.errors import ConfigurationError

__all__ = ["Account", "Answer", "choose", "execute", "shelter"]

_KEPT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")

_SHELTER: Final = Path("/var/lib/holdfast")


class Account(NamedTuple):
    """A user that is not this process."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def can_enter(self, folder: Path) -> bool:
        """Whether the permissions let it pass through `folder` and everything above it."""
        return all(self._may_pass(part.stat()) for part in (folder, *folder.parents))

    def _may_pass(self, found: os.stat_result) -> bool:
        if found.st_uid == self.uid:
            return bool(found.st_mode & 0o100)
        return bool(found.st_mode & (0o010 if found.st_gid == self.gid else 0o001))


class Answer(NamedTuple):
    """What a program left: its exit code and all it said."""

    code: int
    text: str


def choose(data: Path) -> Account | None:
    """Who has to run the server of `data`: None is this process's own user.

    Data that exists stays with its owner, whichever accounts have come to the machine since.

    Raises:
        ConfigurationError: if this is root and there is nobody else.
    """
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        owner = data.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    raise ConfigurationError(
        "PostgreSQL does not run as root, and this machine has no user postgres or nobody to run it as; "
        "set HOLDFAST_DATABASE_URL to a database of yours, or run as another user"
    )


def shelter(account: Account) -> Path:
    """A folder of root's that `account` can enter, for what it cannot reach where it is.

    Raises:
        ConfigurationError: if there is no such place.
    """
    try:
        _SHELTER.mkdir(mode=0o755, exist_ok=True)
        found = _SHELTER.lstat()
    except OSError as error:
        raise _no_shelter(account) from error
    if found.st_uid != 0 or found.st_mode & 0o022 or not account.can_enter(_SHELTER):
        raise _no_shelter(account)
    return _SHELTER


def _no_shelter(account: Account) -> ConfigurationError:
    return ConfigurationError(
        f"PostgreSQL does not run as root, the user {account.name} cannot reach its files, and there is no "
        f"place for them in {_SHELTER}; set HOLDFAST_DATABASE_URL to a database of yours, "
        "or run as another user"
    )


def execute(command: Sequence[str | Path], *, timeout: float, account: Account | None = None) -> Answer:
    """Runs a program to its end, as `account` if there is one.

    Raises:
        OSError: if it cannot be run, for want of permission among other things.
        ConfigurationError: if it takes longer than `timeout` seconds.
    """
    # A server started here inherits the environment and outlives us: no secrets, none of libpq's settings.
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # Into a file and not a pipe: the server would hold the pipe open, and reading would never end.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(  # noqa: S603 - programs found by `binaries`, and ps
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {"LC_ALL": "C", "TZ": "UTC"},
                cwd="/",
                umask=0o077,
                timeout=timeout,
                user=account and account.uid,
                group=account and account.gid,
                extra_groups=account and [],
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"{Path(command[0]).name} did not end in {timeout:.0f} s") from error
        output.seek(0)
        return Answer(done.returncode, output.read().decode(errors="replace").strip())
