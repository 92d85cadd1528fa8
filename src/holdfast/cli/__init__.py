"""The command `holdfast`: looks at workflows, talks to them, installs the schema, and shows itself off.

An annex over the public API: `arguments` is what may be typed, `session` how the database is reached, `exits`
what an error means, `screen` what is printed; `schema`, `looking`, `talking`, `managing` are the commands,
`demo` is the demonstration. stdout is data, stderr is talk.
"""

from collections.abc import Sequence

from holdfast.cli.arguments import parse
from holdfast.cli.session import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; see `exits`."""
    return run(parse(arguments))
