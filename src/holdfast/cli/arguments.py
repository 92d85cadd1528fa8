"""What may be typed: one parser per command, each with the coroutine that carries it out."""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from holdfast.cli import demo, looking, schema, talking
from holdfast.types import Status

EPILOG: Final = """\
exit codes:
  0  ok              2  usage, configuration, schema      4  timeout
  1  workflow failed 3  no such workflow

The database: --dsn, else HOLDFAST_DATABASE_URL, else DATABASE_URL, else an embedded one in .holdfast/.
"""

Add = Callable[..., argparse.ArgumentParser]


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
        "--status", type=str.upper, choices=[*Status], metavar="STATUS", help="only in this status"
    )
    command.add_argument("--limit", type=_count, default=100, metavar="N", help="at most this many (100)")

    command = add("show", looking.show, "one workflow: status, events, journal")
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

    command = add("cancel", talking.cancel, "ask a workflow and its children to end")
    command.add_argument("id", metavar="ID")


def _add_timeout(command: argparse.ArgumentParser) -> None:
    command.add_argument("--timeout", type=_seconds, metavar="S", help="wait at most S seconds")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds, not negative")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count
