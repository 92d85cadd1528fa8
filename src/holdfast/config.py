"""Settings with their units, and where the database's address comes from.

Checks values when they are given, not when they are first used. Opens no connection and reads no file.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Final

from holdfast.errors import ConfigurationError
from holdfast.types import PayloadCodec

__all__ = ["MAX_PAYLOAD_HARD", "Settings", "check_schema_name", "resolve_dsn", "seconds_of"]

MAX_PAYLOAD_HARD: Final = 16 * 1024 * 1024
"""No setting lifts the limit of a payload over these bytes of JSON [K2]."""

DSN_VARIABLES: Final = ("HOLDFAST_DATABASE_URL", "DATABASE_URL")

MOST_SECONDS: Final = 100 * 366 * 86_400.0
"""No wait is longer: the database must be able to add it to its clock."""

_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_DSN: Final = re.compile(r"(postgres(?:ql)?)(?:\+asyncpg)?://")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be tuned. The defaults suit most programs; all times are in seconds.

    Raises:
        ConfigurationError: if a value is out of its range.

    Example:
        >>> Settings(lease=30, pool_size=8).lease
        30
    """

    lease: float = 10.0
    """Seconds after its last heartbeat until a silent process is taken for dead and its workflows move."""

    heartbeat: float = 1.0
    """Seconds between two heartbeats; less than `lease`."""

    cleanup_time: float = 10.0
    """Seconds that `finally` blocks of a cancelled workflow may take [W10]."""

    drain: float = 0.0
    """Seconds that leaving a runtime lets workflows run on before it gives them back; 0: at once."""

    database_patience: float = 60.0
    """Seconds that calls wait for a database that does not answer, before `DatabaseUnavailable`."""

    max_payload: int = 1024 * 1024
    """Bytes of JSON that one payload may take, at most 16 MiB [K2]."""

    pool_size: int = 4
    """Connections for `@transaction` and whatever else takes long, opened when they are needed; besides up to
    six of the process's own: one listens, two commit, one looks, two ask.
    """

    batch_records: int = 1000
    """Records that go into one commit at most."""

    backlog: int = 20_000
    """Records that may wait to be committed before durable calls are held back."""

    codec: PayloadCodec | None = field(default=None, repr=False)
    """Applied to every stored payload, errors included: encryption, compression [K3]; see `PayloadCodec`."""

    hmac_keys: Sequence[bytes] | None = field(default=None, repr=False)
    """Secrets that sign the tokens of `Runtime.token`, at least 16 bytes each, better 32 random ones: the
    first signs, any of them verifies. To rotate, give a new one last to every process, then first, and drop
    the old one once its tokens have expired.
    """

    def __post_init__(self) -> None:
        for name in ("lease", "heartbeat", "database_patience"):
            self._check_seconds(name, positive=True)
        for name in ("cleanup_time", "drain"):
            self._check_seconds(name, positive=False)
        for name in ("max_payload", "pool_size", "batch_records", "backlog"):
            self._check_count(name)
        if self.heartbeat >= self.lease:
            raise ConfigurationError(
                f"Settings.heartbeat ({self.heartbeat}) must be less than lease ({self.lease})"
            )
        if self.max_payload > MAX_PAYLOAD_HARD:
            raise ConfigurationError(
                f"Settings.max_payload must be at most {MAX_PAYLOAD_HARD} bytes (16 MiB)"
            )
        self._check_codec()
        self._check_hmac_keys()

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr]
        hidden = [f"{f.name}=<set>" for f in fields(self) if not f.repr and getattr(self, f.name) is not None]
        return f"Settings({', '.join(shown + hidden)})"

    def _check_seconds(self, name: str, *, positive: bool) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (positive and value == 0):
            least = "more than 0" if positive else "0 or more"
            raise ConfigurationError(f"Settings.{name} must be a number of seconds, {least}, not {value!r}")

    def _check_count(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"Settings.{name} must be a whole number, 1 or more, not {value!r}")

    def _check_codec(self) -> None:
        if self.codec is None:
            return
        if not all(callable(getattr(self.codec, name, None)) for name in ("encode", "decode")):
            raise ConfigurationError(
                "Settings.codec must have the methods encode(data, context) and decode(data, context)"
            )

    def _check_hmac_keys(self) -> None:
        if self.hmac_keys is None:
            return
        usable = not isinstance(self.hmac_keys, bytes | str) and len(self.hmac_keys) > 0
        if not usable or not all(isinstance(key, bytes) and len(key) >= 16 for key in self.hmac_keys):
            raise ConfigurationError("Settings.hmac_keys must be a sequence of bytes, each at least 16 long")
        object.__setattr__(self, "hmac_keys", tuple(self.hmac_keys))


def resolve_dsn(dsn: str | None) -> str | None:
    """The address to connect to: the argument, `HOLDFAST_DATABASE_URL`, `DATABASE_URL`, whichever is first.

    `None` means: use the embedded PostgreSQL. A `+asyncpg` suffix of the scheme is dropped; a variable that
    is empty counts as not set.

    Raises:
        ConfigurationError: if what was found is not a PostgreSQL URL. The text never holds the URL.
    """
    if dsn is not None:
        return _plain_dsn(dsn, "dsn")
    for variable in DSN_VARIABLES:
        if value := os.environ.get(variable):
            return _plain_dsn(value, variable)
    return None


def _plain_dsn(dsn: str, origin: str) -> str:
    found = _DSN.match(dsn) if isinstance(dsn, str) else None
    if found is None:
        raise ConfigurationError(f"{origin} must be a URL that begins with postgresql:// (or postgres://)")
    return f"{found[1]}://{dsn[found.end() :]}"


def check_schema_name(name: str) -> str:
    """Return `name` if it can be a schema without quoting.

    Raises:
        ConfigurationError: unless it is lower-case letters, digits and `_`, no digit first, at most 63 long.
    """
    if not isinstance(name, str) or _SCHEMA_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            "schema must be lower-case letters, digits and underscores, beginning with no digit, "
            f"at most 63 characters long, not {name!r:.80}"
        )
    return name


def seconds_of(duration: "float | timedelta | None") -> float | None:
    """A duration in seconds, from the two ways of giving one; None stays None.

    Raises:
        ValueError: if it is negative, not a finite number, or more than a hundred years.
        TypeError: if it is no duration at all.
    """
    if duration is None:
        return None
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise TypeError(f"a duration is a number of seconds or a timedelta, not {type(duration).__name__}")
    if not math.isfinite(duration) or duration < 0:
        raise ValueError("a duration must be a finite number of seconds, not negative")
    if duration > MOST_SECONDS:
        raise ValueError("a duration must not be more than a hundred years")
    return float(duration)
