"""Locks between processes, on files. The kernel takes them back however a process ends, kill -9 included."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from holdfast.errors import ConfigurationError

__all__ = ["claim", "locked", "share", "try_to_own"]

_PATIENCE: Final = 180.0
"""Seconds; whoever does something under a lock here gives up earlier."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else is in a block like this one, with the same file."""
    descriptor = _open(path)
    try:
        claim(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def share(path: Path) -> int:
    """A share in the lock, to be given back by `os.close`."""
    descriptor = _open(path)
    try:
        claim(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def try_to_own(descriptor: int) -> bool:
    """Whether a share was the last one; if so, it is the whole lock from now on, else it is none any more."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def claim(descriptor: int, kind: int) -> None:
    """Waits for a lock, but not in the kernel: a thread could neither be interrupted there nor give up.

    Raises:
        ConfigurationError: if others hold it for minutes.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    "another process has been starting or stopping it for minutes"
                ) from None
        time.sleep(0.01)


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    folder = path.parent.stat()
    if os.geteuid() == 0 and folder.st_uid != 0:  # root is a guest, and must not lock the owner out
        os.fchown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor
