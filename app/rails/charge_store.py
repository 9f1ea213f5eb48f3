"""Which transaction paid for which one-shot challenge, and the accounts of wallets that pay so, in SQL."""

import asyncio

from sqlalchemy import Engine, select

from app.clock import Clock
from app.database import insert_or_ignore
from app.ledger.account import customer_account
from app.money import BaseUnits
from app.tables import accounts, charges, customers


class ChargeStore:
    """Claims are for good: a transaction pays once, and a challenge is paid once."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def claim(self, tx_hash: str, *, challenge_id: str, payer: str, amount: BaseUnits) -> bool:
        """Durably give a transaction to a challenge; False where either is another's."""
        return await asyncio.to_thread(self._claim, tx_hash, challenge_id, payer, amount)

    def _claim(self, tx_hash: str, challenge_id: str, payer: str, amount: BaseUnits) -> bool:
        row = {
            "tx_hash": tx_hash,
            "challenge_id": challenge_id,
            "payer": payer,
            "amount": amount,
            "created_at_ms": self._clock.now_ms(),
        }
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(insert_or_ignore(self._engine, charges), row)
        return self.paid_by(challenge_id) == tx_hash

    def paid_by(self, challenge_id: str) -> str | None:
        """The transaction that a challenge was claimed for."""
        with self._engine.connect() as connection:
            query = select(charges.c.tx_hash).where(charges.c.challenge_id == challenge_id)
            row = connection.execute(query).first()
        return row.tx_hash if row else None

    def wallet_account(self, payer: str) -> str:
        """The account of a wallet that pays one request at a time, made on first use."""
        customer_id = f"wallet_{payer.removeprefix('0x')}"
        now = self._clock.now_ms()
        zero = dict.fromkeys(
            ("debits_pending", "debits_posted", "credits_pending", "credits_posted", "credit_limit", "version"), 0
        )
        account = {"id": customer_account(customer_id), "created_at_ms": now, **zero}
        customer = {"id": customer_id, "name": f"wallet {payer}", "created_at_ms": now}
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(insert_or_ignore(self._engine, customers), customer)
            connection.execute(insert_or_ignore(self._engine, accounts), account)
        return customer_account(customer_id)
