"""What may be typed: one parser per command, each with the coroutine that carries it out."""

import argparse
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Final

from holdfast.cli import demo, looking, managing, schema, talking
from holdfast.config import seconds_of
from holdfast.types import Status

EPILOG: Final = """\
exit codes:
  0  ok              2  usage, configuration, schema      4  timeout
  1  workflow failed 3  no such workflow

The database: --dsn, else HOLDFAST_DATABASE_URL, else DATABASE_URL, else an embedded one in .holdfast/.
"""

Add = Callable[..., argparse.ArgumentParser]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What has been typed. Leaves the process with 2 if that cannot be meant."""
    whole = parser()
    given = whole.parse_args(arguments)
    for value in vars(given).values():
        if isinstance(value, str) and not _is_text(value):
            whole.error("an argument is not UTF-8")
    return given


def _is_text(value: str) -> bool:
    """Bytes of an argument that are no characters are lone surrogates in its `str`."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. What it gives has `.act`, a coroutine function."""
    whole = argparse.ArgumentParser(
        prog="holdfast",
        description="Durable asyncio workflows that talk while they run, on nothing but PostgreSQL.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"holdfast {version('holdfast')}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, act: object, text: str, *, schema: str = "holdfast") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--json", action="store_true", help="JSON on stdout, one document a line")
        command.add_argument("--dsn", metavar="URL", help="the database, instead of the environment's")
        command.add_argument("--schema", default=schema, metavar="NAME", help=f"its schema ({schema})")
        command.set_defaults(act=act)
        return command

    add("demo", demo.run, "a checkout for real: processes, a payment, a kill -9", schema="holdfast_demo")
    _add_migrate(add)
    _add_looking(add)
    _add_talking(add)
    _add_managing(add)
    return whole


def _add_migrate(add: Add) -> None:
    command = add("migrate", schema.migrate, "bring the tables up to this version")
    ways = command.add_mutually_exclusive_group()
    ways.add_argument("--sql", action="store_true", help="print what it would do, as a script for psql")
    ways.add_argument(
        "--check", action="store_true", help="change nothing; exit with 2 unless it is up to date"
    )


def _add_looking(add: Add) -> None:
    command = add("list", looking.list_, "workflows, newest first")
    command.add_argument("--name", help="only of this workflow")
    command.add_argument(
        "--status",
        type=str.upper,
        choices=[*Status],
        action="append",
        metavar="STATUS",
        help="only in this status, or in one of several: give it again",
    )
    command.add_argument("--queue", help="only of this queue")
    command.add_argument("--attributes", metavar="JSON", help="only with these attributes")
    command.add_argument("--parent", metavar="ID", help="only children of this workflow")
    command.add_argument("--id-prefix", metavar="PREFIX", help="only with ids that begin like this")
    command.add_argument("--executor", metavar="NAME", help="only what this process runs or ran last")
    for event in ("created", "finished"):
        for side in ("after", "before"):
            command.add_argument(
                f"--{event}-{side}", type=_moment, metavar="TIME", help=f"only {event} {side} this (ISO 8601)"
            )
    command.add_argument("--limit", type=_count, default=100, metavar="N", help="at most this many (100)")
    command.add_argument("--cursor", help="the page behind the one that ended with this")

    command = add("show", looking.show, "one workflow: status, events, streams, messages, journal")
    command.add_argument("id", metavar="ID")


def _add_talking(add: Add) -> None:
    command = add("start", talking.start, "start a workflow; some runtime that knows the name runs it")
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "input",
        metavar="JSON",
        nargs="?",
        help="an object: keyword arguments; an array: positional ones; else the only one; - reads stdin",
    )
    command.add_argument("--id", help="its id and idempotency key; one is made up otherwise")
    command.add_argument("--wait", action="store_true", help="wait for the result and print it, not the id")
    _add_timeout(command)

    command = add("send", talking.send, "send a message to a workflow")
    command.add_argument("id", metavar="ID")
    command.add_argument("topic", metavar="TOPIC", help="an empty word: no topic")
    command.add_argument("message", metavar="JSON", help="- reads stdin")
    command.add_argument("--key", help="idempotency key: the same key again is dropped")

    command = add("event", talking.event, "print an event of a workflow; waits until it is set")
    command.add_argument("id", metavar="ID")
    command.add_argument("key", metavar="KEY")
    _add_timeout(command)

    command = add("watch", talking.watch, "print an event of a workflow, and every change, until it ends")
    command.add_argument("id", metavar="ID")
    command.add_argument("key", metavar="KEY")

    command = add("tail", talking.tail, "follow a stream of a workflow until it ends")
    command.add_argument("id", metavar="ID")
    command.add_argument("stream", metavar="STREAM")
    command.add_argument("--after", type=int, metavar="N", help="only what is behind offset N")


def _add_managing(add: Add) -> None:
    command = add("cancel", managing.cancel, "ask a workflow and its children to end")
    command.add_argument("id", metavar="ID")

    command = add("resume", managing.resume, "let a workflow that was ended go on where it was")
    command.add_argument("id", metavar="ID")

    command = add("fork", managing.fork, "do a workflow again from a step on, as a new one; prints its id")
    command.add_argument("id", metavar="ID")
    command.add_argument("--from-step", required=True, metavar="STEP", help="as `holdfast show` calls it")
    command.add_argument("--id", dest="fork_id", metavar="NEW", help="its id; one is made up otherwise")


def _add_timeout(command: argparse.ArgumentParser) -> None:
    command.add_argument("--timeout", type=_seconds, metavar="S", help="wait at most S seconds")


def _seconds(text: str) -> float:
    seconds = float(text)
    try:
        seconds_of(seconds)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return seconds


def _moment(text: str) -> datetime:
    """A moment; without a zone it is meant as the clock on the wall has it."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except OverflowError:
        raise argparse.ArgumentTypeError("is out of range") from None


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count
