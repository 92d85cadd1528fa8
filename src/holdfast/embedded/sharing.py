"""Several processes, one server: the first one starts it, later ones join, the last one out stops it.

Two files in the home are locked, by flock, which the kernel takes back however a process ends:
`users.lock`, shared, for as long as one uses the server; `start.lock` around every start and stop. A list of
users in a file would be wrong after the first kill -9.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from holdfast.embedded.accounts import Account, choose, shelter
from holdfast.embedded.cluster import Cluster
from holdfast.embedded.locks import locked, share, try_to_own
from holdfast.errors import ConfigurationError

__all__ = ["Embedded"]

logger: logging.Logger = logging.getLogger("holdfast")


class Embedded:
    """A server of one's own, shared by every process that names the same home.

    The home is the argument, else `HOLDFAST_HOME`, else `.holdfast` in the working directory; removing the
    folder removes the data. `durable=False` gives up surviving a power cut (not a crash of any process) for
    speed, for tests. `options` are settings as in postgresql.conf, all but where it listens; like `durable`
    they count for whoever starts the server.

    Synchronous, and a first start takes a second: in an event loop, call it in a thread.

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
        self.home: Path = Path(home or os.environ.get("HOLDFAST_HOME") or ".holdfast").absolute()
        self._durable = durable
        self._options = dict(options or {})
        self._uses: list[int] = []

    def __repr__(self) -> str:
        return f"<Embedded: {self.home}>"

    def __enter__(self) -> str:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> str:
        """Starts the server, or joins the one that runs, and gives its DSN; release it as often as acquired.

        Raises:
            ConfigurationError: if there is no PostgreSQL to run or it does not start; with its log's end.
        """
        try:
            with self._alone() as cluster:
                users = share(self.home / "users.lock")
                try:
                    cluster.start()
                    dsn = cluster.dsn
                except BaseException:
                    os.close(users)
                    raise
        except OSError as error:
            raise ConfigurationError(
                f"cannot keep a database in {self.home}: {error.strerror}: {error.filename}; set "
                "HOLDFAST_HOME to another folder, or HOLDFAST_DATABASE_URL to a database of yours"
            ) from error
        self._uses.append(users)
        return dsn

    def release(self) -> None:
        """Leaves the server; the last one out stops it. If it does not stop, that is logged, not raised."""
        users = self._uses.pop()
        try:
            if not _is(users, self.home / "users.lock"):
                return  # the home was removed, and its server with it; there may be a new one by now
            with self._alone() as cluster:
                if try_to_own(users):
                    cluster.stop()
        except (OSError, ConfigurationError) as error:
            logger.warning("the embedded PostgreSQL in %s may still run: %s", self.home, error)
        finally:
            os.close(users)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Cluster]:
        """The cluster, while nobody else starts it, stops it or decides where it lies."""
        if not self.home.exists():
            _create(self.home)
        with locked(self.home / "start.lock"):
            base, account = _place(self.home.resolve())
            yield Cluster(base=base, account=account, durable=self._durable, options=self._options)


def _create(home: Path) -> None:
    """Complete at once, as another process may be doing the same; a home that exists is left as it is."""
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{home.name}.new-", dir=home.parent))
    (draft / ".gitignore").write_text("*\n")
    draft.chmod(0o711 if os.geteuid() == 0 else 0o700)
    try:
        draft.rename(home)
    except OSError as error:
        shutil.rmtree(draft)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _place(home: Path) -> tuple[Path, Account | None]:
    """Where the cluster lies, and whom its server runs as.

    In the home, but for root in a folder that the server's account cannot reach, such as /root: then in a
    shelter, and the link `server` in the home says where: it stays there, and is forgotten with the home.
    """
    link = home / "server"
    base = link.readlink() if link.is_symlink() else home
    account = choose(base / "data")
    if account is None or base != home:
        return base, account
    if account.can_enter(home):
        return home, account
    if (home / "data").exists():
        raise ConfigurationError(
            f"the user {account.name}, who has to run the server, cannot reach {home} any longer"
        )
    base = Path(tempfile.mkdtemp(prefix=f"{home.parent.name}-", dir=shelter(account)))
    base.chmod(0o711)
    link.symlink_to(base)
    logger.warning("the user %s cannot reach %s: the data is kept in %s", account.name, home, base)
    return base, account
