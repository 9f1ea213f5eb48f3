"""Each finding about channels is provoked by damaging the rows of books that were green, one way at a time."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from app.channels.outbox_store import CONFIRMED, OutboxStore
from app.database import connect
from app.ledger.account import channel_account
from app.ledger.journal_store import JournalStore
from app.ledger.lease_store import LeaseStore
from app.money import BaseUnits
from app.reconcile.channel_rules import rules
from app.reconcile.ledger_check import Report, check
from app.settings import DatabaseSettings
from app.tables import price_versions
from tests.clocks import FakeClock
from tests.ledger.channel_operations import (
    CHANNEL,
    add_channel,
    channel_admit,
    channel_capture,
    freeze,
    observe,
    plan,
    voucher,
)
from tests.ledger.operations import MODEL, PROVIDER, VERSION, sweep
from tests.reconcile.test_ledger_check import damage

LEASE_TTL_S = 30.0
CLOSED = "0x" + "c2" * 32
FOUND = "0x" + "c3" * 32
# Of the usage that `channel_capture` reports: ten prompt tokens and five of output.
PRICE = 200_000
PRICES = """{"input": 20000000, "output": 0}"""


def stand(engine: Engine, clock: FakeClock) -> None:
    """A channel in use and being settled, one that was closed, and one of another life."""
    LeaseStore(engine).register("o1", now=clock.now_ms())
    with engine.begin() as connection:
        version = {"id": VERSION, "provider": PROVIDER, "model": MODEL, "version": 1}
        connection.execute(
            price_versions.insert().values({**version, "prices": PRICES, "costs": "{}", "created_at_ms": 1})
        )
    for channel_id, settled in ((CHANNEL, 0), (CLOSED, 0), (FOUND, 700)):
        add_channel(engine, channel_id, settled=settled, clock=clock)
    outbox, store = OutboxStore(engine, clock), JournalStore(engine, clock)
    store.apply([voucher(100), voucher(300), voucher(500), channel_admit("req_1", amount=PRICE, challenge_id="ch_1")])
    attempt = ("req_1", 1, PROVIDER, MODEL, "ok", 200, 1, 1)
    store.apply([channel_capture("req_1", price=PRICE, challenge_id="ch_1", attempts=(attempt,))])
    store.apply([channel_admit("req_2", amount=100_000, challenge_id="ch_2")])
    store.apply([plan("settle", 100, settlement_id="set_open")])
    closing = channel_account(CLOSED)
    store.apply([voucher(90, channel_id=CLOSED), channel_admit("req_3", amount=1, channel_id=CLOSED)])
    store.apply([sweep("req_3", silent_since=None, account_id=closing), freeze(channel_id=CLOSED)])
    store.apply([plan("close", 90, settlement_id="set_done", channel_id=CLOSED)])
    assert outbox.take_lease("1:0xabc", owner_id="own", ttl_ms=1000)
    assert outbox.keep_signed("set_done", account="1:0xabc", owner_id="own", nonce=7, raw=b"raw", tx_hash="0x01")
    store.apply([observe(finalized=True, channel_id=CLOSED)])
    [signed] = [row for row in outbox.open_settlements() if row.id == "set_done"]
    outbox.end(signed, state=CONFIRMED, fee=BaseUnits(3))
    store.close()


@pytest.fixture
def standing(sqlite_url: str, clock: FakeClock) -> Iterator[Engine]:
    """The books that every test damages."""
    engine = connect(DatabaseSettings(url=sqlite_url))
    stand(engine, clock)
    yield engine
    engine.dispose()


def checked(engine: Engine, clock: FakeClock) -> Report:
    return check(engine, clock, LEASE_TTL_S)


def test_channels_that_balance_are_green(engine: Engine, clock: FakeClock) -> None:
    stand(engine, clock)
    report = checked(engine, clock)
    assert report.findings == []
    lines = {line.account: line for line in report.lines}
    # Payers share a line, and so do their escrows.
    assert (lines["channel:*"].accounts, lines["channel:*"].held) == (3, 100_000)
    assert lines["escrow:*"].debits == 590_000


DAMAGES: list[tuple[str, str, str]] = [
    ("channel_accepted", CHANNEL, "UPDATE channels SET accepted = accepted + 1000 WHERE id = '{id}'"),
    ("channel_accepted", FOUND, "UPDATE channels SET accepted = accepted + 1000 WHERE id = '{id}'"),
    ("channel_accepted", CHANNEL, "UPDATE transfers SET kind = 'grant' WHERE id = '{id}:v300'"),
    ("channel_spent", CHANNEL, "UPDATE channels SET spent = spent - 1 WHERE id = '{id}'"),
    ("channel_spent", CHANNEL, "UPDATE transfers SET kind = 'goodwill' WHERE id = 'req_1:h0:r'"),
    ("channel_settled", CHANNEL, "UPDATE channels SET settled = 100 WHERE id = '{id}'"),
    ("channel_overspent", CHANNEL, "UPDATE channels SET spent = accepted + 1 WHERE id = '{id}'"),
    ("channel_published", CHANNEL, "UPDATE channels SET published = 201 WHERE id = '{id}'"),
    ("channel_voucher", CHANNEL, "DELETE FROM vouchers WHERE channel_id = '{id}' AND amount = 500"),
    ("channel_without_account", FOUND, "DELETE FROM accounts WHERE id = 'channel:{id}'"),
    ("account_without_channel", "channel:" + FOUND, "DELETE FROM channels WHERE id = '" + FOUND + "'"),
    ("channel_not_wound_up", CLOSED, "UPDATE accounts SET debits_posted = debits_posted - 1 WHERE id = 'channel:{id}'"),
    ("channel_not_wound_up", CLOSED, "UPDATE transfers SET amount = 89999 WHERE id = '{id}:unspent'"),
    (
        "settlements_open",
        CHANNEL,
        "INSERT INTO settlements SELECT 'set_2', channel_id, kind, amount, capture, signature, account, state, nonce,"
        " raw, tx_hash, fee, attempts, error, created_at_ms, updated_at_ms FROM settlements WHERE id = 'set_open'",
    ),
    ("nonce_used_twice", "set_done", "UPDATE settlements SET nonce = 7 WHERE id = 'set_open'"),
    ("settlement_unsigned", "set_open", "UPDATE settlements SET state = 'signed', nonce = 8 WHERE id = 'set_open'"),
    ("settlement_not_booked", "set_done", "UPDATE settlements SET capture = 1 WHERE id = 'set_done'"),
    ("close_not_booked", "set_done", "UPDATE channels SET status = 'closing' WHERE id = '" + CLOSED + "'"),
    ("settlement_published", "set_open", "UPDATE settlements SET amount = 150 WHERE id = 'set_open'"),
    (
        "settlement_published",
        "set_open",
        "UPDATE channels SET published = 99 WHERE id = '" + CHANNEL + "'",
    ),
    ("receipt_without_outcome", "req_1", "DELETE FROM outcomes WHERE request_id = 'req_1'"),
    ("receipt_without_outcome", "req_1", "DELETE FROM requests WHERE id = 'req_1'"),
    ("receipt_payer", "req_1", "UPDATE receipts SET channel_id = '" + FOUND + "' WHERE request_id = 'req_1'"),
    ("receipt_above_spent", CHANNEL, "UPDATE receipts SET spent = 201 WHERE request_id = 'req_1'"),
    ("challenge_without_request", "ch_2", "UPDATE challenge_claims SET request_id = 'req_x' WHERE id = 'ch_2'"),
    (
        "voucher_above_accepted",
        CHANNEL,
        "UPDATE channels SET accepted = 400000 WHERE id = '{id}'",
    ),
]


@pytest.mark.parametrize(
    ("kind", "row", "statement"), DAMAGES, ids=[f"{n}-{kind}" for n, (kind, _, _) in enumerate(DAMAGES)]
)
def test_damage_is_found(standing: Engine, clock: FakeClock, kind: str, row: str, statement: str) -> None:
    damage(standing, statement.format(id=row))
    found = {(finding.kind, finding.row) for finding in checked(standing, clock).findings}
    assert (kind, row) in found, found


def test_every_rule_has_a_damage_that_it_finds() -> None:
    assert {rule.kind for rule in rules()} == {kind for kind, _, _ in DAMAGES}
