"""`python -m holdfast.cli.demo shop` or `bank`: a process of the demonstration, told what to do on stdin."""

import asyncio
import sys

from holdfast.cli.demo import bank, shop

if __name__ == "__main__":
    asyncio.run({"shop": shop.main, "bank": bank.main}[sys.argv[1]]())
