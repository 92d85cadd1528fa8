"""A private PostgreSQL in a folder, for programs that were given no database. Linux and macOS, synchronous.

`sharing` lets processes share one server, `cluster` is the data and the server, `binaries` finds the
programs, `accounts` knows whom they run as. Nothing here knows of schemas, of workflows or of asyncio.
"""

from holdfast.embedded.binaries import find_binaries
from holdfast.embedded.sharing import Embedded

__all__ = ["Embedded", "find_binaries"]
