"""What must be true of payment channels, each rule as the select that finds the rows that break it. Pure.

Accepted and spent are re-proved from the transfers, what the chain paid out from the settlements' transfers,
and rule 2 (nothing above what was spent is published while a channel is open) from the rows themselves.
Whether the chain agrees is another question: `app.reconcile.chain_check`.
"""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, func, or_, select

from app.channels.outbox_store import CONFIRMED, OPEN_STATES
from app.ledger.account import CHANNEL_PREFIX, ESCROW_PREFIX
from app.ledger.transfer import POST, POSTED, SETTLEMENT, USAGE_KINDS, VOUCHER
from app.money import NANO_PER_BASE_UNIT
from app.reconcile.ledger_rules import Rule
from app.tables import (
    accounts,
    challenge_claims,
    channels,
    outcomes,
    receipts,
    requests,
    settlements,
    transfers,
    vouchers,
)

_row = channels.c.id.label("row")
_account_id = CHANNEL_PREFIX + channels.c.id
_escrow_id = ESCROW_PREFIX + channels.c.id
_settled = channels.c.settled * NANO_PER_BASE_UNIT


def rules() -> list[Rule]:
    """Every rule about channels that the database can decide by itself."""
    return [*_counter_rules(), *_state_rules(), *_outbox_rules(), *_row_rules()]


def _moved(kinds: tuple[str, ...], *, by: str) -> Subquery:
    column = transfers.c[by]
    return (
        select(column.label("account_id"), func.sum(transfers.c.amount).label("total"))
        .where(transfers.c.kind.in_(kinds))
        .group_by(column)
        .subquery()
    )


def _counter_rules() -> Iterable[Rule]:
    """What a channel counts, against the transfers that made it so."""
    claims: tuple[tuple[str, ColumnElement[int], Subquery, ColumnElement[str], str], ...] = (
        (
            "channel_accepted",
            channels.c.accepted,
            _moved((VOUCHER,), by="credit_account"),
            _account_id,
            "says that {says} was accepted; what it had when it was found and its vouchers' credits make {makes}",
        ),
        (
            "channel_spent",
            channels.c.spent,
            _moved(USAGE_KINDS, by="debit_account"),
            _account_id,
            "says that {says} was spent; what it had when it was found and its captures make {makes}",
        ),
        (
            "channel_settled",
            _settled,
            _moved((SETTLEMENT,), by="credit_account"),
            _escrow_id,
            "says that {says} was paid out; what it had when it was found and its settlements make {makes}",
        ),
    )
    for kind, says, moved, account_id, message in claims:
        makes = channels.c.recovered + func.coalesce(moved.c.total, 0)
        yield Rule(
            kind,
            select(_row, says.label("says"), makes.label("makes"))
            .join_from(channels, moved, moved.c.account_id == account_id, isouter=True)
            .where(says != makes),
            message,
        )


def _state_rules() -> Iterable[Rule]:
    yield Rule(
        "channel_overspent",
        select(_row, channels.c.spent, channels.c.accepted).where(channels.c.spent > channels.c.accepted),
        "spent {spent}, and only {accepted} was accepted",
    )
    published = channels.c.published * NANO_PER_BASE_UNIT
    yield Rule(
        "channel_published",
        select(_row, published.label("published"), channels.c.spent).where(
            channels.c.status == "open", channels.c.close_requested_at == 0, published > channels.c.spent
        ),
        "is open and has published a voucher of {published}, above the {spent} that were spent",
    )
    highest = select(func.max(vouchers.c.amount)).where(vouchers.c.channel_id == channels.c.id).scalar_subquery()
    kept = func.coalesce(highest, 0) * NANO_PER_BASE_UNIT
    yield Rule(
        "channel_voucher",
        select(_row, channels.c.accepted, kept.label("kept")).where(
            channels.c.status != "closed", channels.c.accepted != channels.c.recovered, channels.c.accepted != kept
        ),
        "accepted {accepted}, and the highest voucher that is kept is for {kept}",
    )
    yield Rule(
        "channel_without_account",
        select(_row).where(~select(accounts.c.id).where(accounts.c.id == _account_id).exists()),
        "has no account",
    )
    yield Rule(
        "account_without_channel",
        select(accounts.c.id.label("row")).where(
            accounts.c.id.startswith(CHANNEL_PREFIX, autoescape=True),
            ~select(channels.c.id).where(_account_id == accounts.c.id).exists(),
        ),
        "is the account of no channel",
    )
    balance = accounts.c.credits_posted - accounts.c.debits_posted
    claim = _claims()
    left = func.coalesce(claim.c.left, 0)
    yield Rule(
        "channel_not_wound_up",
        select(_row, balance.label("balance"), left.label("left"))
        .join_from(channels, accounts, accounts.c.id == _account_id)
        .join(claim, claim.c.account_id == _escrow_id, isouter=True)
        .where(channels.c.status == "closed", accounts.c.debits_pending == 0, or_(balance != 0, left != 0)),
        "is closed, and its account still has {balance} and its escrow {left}",
    )


def _claims() -> Subquery:
    """What each escrow account has, from its transfers."""
    signed = [
        select(transfers.c[side].label("account_id"), (sign * transfers.c.amount).label("amount")).where(
            transfers.c[side].startswith(ESCROW_PREFIX, autoescape=True), transfers.c.phase.in_((POSTED, POST))
        )
        for side, sign in (("debit_account", 1), ("credit_account", -1))
    ]
    moves = signed[0].union_all(signed[1]).subquery()
    return select(moves.c.account_id, func.sum(moves.c.amount).label("left")).group_by(moves.c.account_id).subquery()


def _outbox_rules() -> Iterable[Rule]:
    row = settlements.c.id.label("row")
    yield Rule(
        "settlements_open",
        select(settlements.c.channel_id.label("row"), func.count().label("count"))
        .where(settlements.c.state.in_(OPEN_STATES))
        .group_by(settlements.c.channel_id)
        .having(func.count() > 1),
        "has {count} settlements under way at once",
    )
    yield Rule(
        "nonce_used_twice",
        select(func.min(settlements.c.id).label("row"), settlements.c.account, settlements.c.nonce)
        .where(settlements.c.nonce.is_not(None))
        .group_by(settlements.c.account, settlements.c.nonce)
        .having(func.count() > 1),
        "and others of {account} have the nonce {nonce}",
    )
    yield Rule(
        "settlement_unsigned",
        select(row, settlements.c.state).where(
            settlements.c.state.in_(("signed", CONFIRMED)),
            or_(settlements.c.tx_hash.is_(None), and_(settlements.c.state == "signed", settlements.c.raw.is_(None))),
        ),
        "is {state} without a transaction",
    )
    with_channel = select(row, settlements.c.capture, channels.c.settled, channels.c.status).join_from(
        settlements, channels, channels.c.id == settlements.c.channel_id
    )
    yield Rule(
        "settlement_not_booked",
        with_channel.where(settlements.c.state == CONFIRMED, settlements.c.capture > channels.c.settled),
        "paid out {capture} base units in all, and its channel says {settled}",
    )
    yield Rule(
        "close_not_booked",
        with_channel.where(
            settlements.c.state == CONFIRMED, settlements.c.kind == "close", channels.c.status != "closed"
        ),
        "closed its channel, which is {status}",
    )
    shown = settlements.c.amount * NANO_PER_BASE_UNIT
    yield Rule(
        "settlement_published",
        select(row, settlements.c.amount, channels.c.published)
        .join_from(settlements, channels, channels.c.id == settlements.c.channel_id)
        .where(
            or_(
                settlements.c.amount > channels.c.published,
                and_(settlements.c.kind == "settle", shown > channels.c.spent),
            )
        ),
        "shows a voucher of {amount} base units: above what was spent, or above the published {published}",
    )


def _row_rules() -> Iterable[Rule]:
    row = receipts.c.request_id.label("row")
    outcome = and_(outcomes.c.request_id == receipts.c.request_id)
    yield Rule(
        "receipt_without_outcome",
        select(row)
        .join_from(receipts, requests, requests.c.id == receipts.c.request_id, isouter=True)
        .join(outcomes, outcome, isouter=True)
        .where(or_(requests.c.id.is_(None), outcomes.c.request_id.is_(None))),
        "has a receipt, and no request or no outcome",
    )
    yield Rule(
        "receipt_payer",
        select(row, receipts.c.channel_id, requests.c.account_id)
        .join_from(receipts, requests, requests.c.id == receipts.c.request_id)
        .where(requests.c.account_id != CHANNEL_PREFIX + receipts.c.channel_id),
        "has a receipt of {channel_id}, and was paid by {account_id}",
    )
    later = func.max(case((receipts.c.spent * NANO_PER_BASE_UNIT > channels.c.spent, receipts.c.spent), else_=0))
    yield Rule(
        "receipt_above_spent",
        select(_row, later.label("said"), channels.c.spent)
        .join_from(receipts, channels, channels.c.id == receipts.c.channel_id)
        .group_by(channels.c.id, channels.c.spent)
        .having(later > 0),
        "spent {spent}, and a receipt says {said} base units",
    )
    yield Rule(
        "challenge_without_request",
        select(challenge_claims.c.id.label("row"), challenge_claims.c.request_id).where(
            ~select(requests.c.id).where(requests.c.id == challenge_claims.c.request_id).exists()
        ),
        "was claimed by {request_id}, which is not there",
    )
    known: Select[tuple[str]] = select(channels.c.id).where(channels.c.id == vouchers.c.channel_id)
    yield Rule(
        "voucher_above_accepted",
        select(vouchers.c.channel_id.label("row"), vouchers.c.amount).where(
            ~known.where(channels.c.accepted >= vouchers.c.amount * NANO_PER_BASE_UNIT).exists()
        ),
        "keeps a voucher of {amount} base units, which was not accepted",
    )
