"""Customers and keys as the admin API leaves them, written directly."""

from typing import Any

from sqlalchemy import Engine, update

from app.ledger.account import customer_account
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Posted
from app.tables import accounts, api_keys, customers
from tests.clocks import START_MS, FakeClock
from tests.ledger.operations import budget, post


def add_customer(engine: Engine, customer_id: str, *, credits: int = 0, credit_limit: int = 0) -> str:
    """A customer with an account, topped up through the ledger; returns the account's id."""
    account_id = customer_account(customer_id)
    zeros = dict.fromkeys(("debits_pending", "debits_posted", "credits_pending", "credits_posted", "version"), 0)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(customers.insert().values(id=customer_id, name=customer_id, created_at_ms=START_MS))
        connection.execute(
            accounts.insert().values(id=account_id, credit_limit=credit_limit, created_at_ms=START_MS, **zeros)
        )
    if credits:
        store = JournalStore(engine, FakeClock())
        assert store.apply([post(f"top-up:{customer_id}", amount=credits, credit=account_id)]) == [Posted()]
        store.close()
    return account_id


def add_key(engine: Engine, key_id: str, *, customer_id: str, **changes: Any) -> None:
    """A key of the customer's, as `budget` makes it."""
    key = budget(id=key_id, **{"hash": f"hash-of-{key_id}", **changes})
    row = {name: getattr(key, name) for name in key.__slots__}
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(
            api_keys.insert().values(customer_id=customer_id, label=key_id, hint="...", created_at_ms=START_MS, **row)
        )


def set_credit_limit(engine: Engine, account_id: str, credit_limit: int) -> None:
    """Change how far an account may owe."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(
            update(accounts)
            .where(accounts.c.id == account_id)
            .values(credit_limit=credit_limit, version=accounts.c.version + 1)
        )
