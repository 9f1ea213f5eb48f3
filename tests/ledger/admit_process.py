"""One replica of several: admits as much as it is told to, at once, and says how much passed.

Run as ``python -m tests.ledger.admit_process <database url> <name> <requests> <amount>``; it prints
``ready``, waits for a line on standard input, and prints how many of its requests were admitted.
"""

import asyncio
import sys

from app.clock import SystemClock
from app.database import connect
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Admitted
from app.settings import DatabaseSettings
from tests.ledger.conftest import running
from tests.ledger.operations import admit


async def main(url: str, name: str, requests: int, amount: int) -> None:
    engine = connect(DatabaseSettings(url=url))
    store = JournalStore(engine, SystemClock())
    async with running(store, batch_max=8) as journal:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        results = await asyncio.gather(
            *(journal.submit(admit(f"{name}-{n}", amount=amount, required=amount)) for n in range(requests))
        )
    engine.dispose()
    print(sum(isinstance(result, Admitted) for result in results), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
