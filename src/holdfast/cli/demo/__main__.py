"""`python -m holdfast.cli.demo shop [parcel]` or `bank`: a process of the demonstration, told what to do on
stdin; the parcel is the one in the middle of which the shop is to be killed.
"""

import asyncio
import sys

from holdfast.cli.demo import bank, shop

if __name__ == "__main__":
    asyncio.run({"shop": shop.main, "bank": bank.main}[sys.argv[1]](*sys.argv[2:]))
