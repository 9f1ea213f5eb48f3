"""What operations on payment channels do to the books. Pure; the five rules of channels are kept here.

A channel is an account and a voucher is a credit: holds and captures are those of `app.ledger.decision`.
What is added is what only channels have: a presented voucher, a challenge that buys content once, a state
that may stop service, and the chain, which pays out and ends channels.
"""

from app.channels.channel import AMOUNT_MAX, Channel, VoucherRefused
from app.errors import InvariantViolated
from app.ledger import transfer as transfers
from app.ledger.account import ADJUSTMENTS, TREASURY, Account, channel_account, escrow_account
from app.ledger.books import Books
from app.ledger.operation import (
    AcceptVoucher,
    Capture,
    Changed,
    ChannelCondition,
    Freeze,
    Observe,
    PlanSettlement,
    Refused,
)
from app.ledger.transfer import Transfer
from app.money import NANO_PER_BASE_UNIT, ZERO, BaseUnits, NanoUsd, base_units_down, nano_usd_of

# Refusals that no amount of money turns.
STOPS = frozenset({"channel_not_found", "channel_closing", "channel_finalized", "challenge_used"})


def _channel(books: Books, channel_id: str) -> Channel | None:
    return books.channels.get(channel_id)


def free_to_admit(books: Books, account: Account, condition: ChannelCondition) -> tuple[NanoUsd, str]:
    """What a request on a channel may hold, and why not more.

    Rule 1: what is accepted and neither spent nor held, and no more than the voucher presented with it
    covers beyond what is spent; a challenge buys content once.
    """
    free, reason = free_to_extend(books, account, condition)
    if reason in STOPS:
        return free, reason
    if condition.challenge_id is not None and condition.challenge_id in books.challenges_claimed:
        return ZERO, "challenge_used"
    channel = books.channels[condition.channel_id]
    covered = NanoUsd(min(condition.presented, channel.accepted) - channel.spent)
    if condition.presented <= nano_usd_of(max(channel.published, channel.settled)):
        # Everybody can read its signature. It is spent, too, unless somebody settled beyond what was spent here.
        covered = ZERO
    return (covered, "insufficient_balance") if covered < free else (free, reason)


def free_to_extend(books: Books, account: Account, condition: ChannelCondition) -> tuple[NanoUsd, str]:
    """What a running stream may hold more, and why not more. Rule 5: exposure is capped."""
    channel = _channel(books, condition.channel_id)
    if channel is None:
        return ZERO, "channel_not_found"
    if channel.stopped is not None:
        return ZERO, channel.stopped
    # What is held will be spent, and nothing of it can be settled before.
    room = NanoUsd(condition.exposure_max - channel.exposure - account.debits_pending)
    if room <= 0:
        return ZERO, "exposure"
    free = min(account.available, NanoUsd(channel.accepted - channel.spent - account.debits_pending))
    return (room, "exposure") if room < free else (free, "insufficient_balance")


def claim_challenge(books: Books, condition: ChannelCondition, *, request_id: str) -> None:
    """Claim the challenge in the commit of the hold."""
    if condition.challenge_id is not None:
        books.challenges_claimed.add(condition.challenge_id)
        books.new_challenges.append((condition.challenge_id, request_id, condition.challenge_expires_at_ms))


def accept_voucher(books: Books, op: AcceptVoucher) -> Changed | Refused:
    """A voucher with its signature and its credit: one commit."""
    channel = _channel(books, op.channel_id)
    if channel is None:
        return Refused("channel-not-found")
    before = channel.accepted
    try:
        credit = channel.accept(op.amount, min_delta=op.min_delta)
    except VoucherRefused as refused:
        return Refused(refused.reason, channel=books.view(channel))
    if credit == 0:
        return Changed(books.view(channel), first=False, accepted_before=before)
    account = books.account(channel_account(channel.id))
    account.credit(credit)
    books.accounts_changed.add(account.id)
    books.channels_changed.add(channel.id)
    books.new_vouchers.append((channel.id, op.amount, op.signature, books.now))
    books.new_transfers.append(
        Transfer(
            f"{channel.id}:v{op.amount}",
            transfers.VOUCHER,
            transfers.POSTED,
            escrow_account(channel.id),
            account.id,
            credit,
            None,
            None,
            None,
            books.now,
        )
    )
    if channel.accepted - before != credit:
        raise InvariantViolated(f"a voucher on {channel.id} credited {credit} and moved {channel.accepted - before}")
    return Changed(books.view(channel), accepted_before=before)


def freeze(books: Books, op: Freeze) -> Changed | Refused:
    """No new holds and no vouchers from this commit on."""
    channel = _channel(books, op.channel_id)
    if channel is None:
        return Refused("channel-not-found")
    first = channel.status == "open"
    try:
        channel.freeze(op.amount, op.signature)
    except VoucherRefused as refused:
        return Refused(refused.reason, channel=books.view(channel))
    books.channels_changed.add(channel.id)
    return Changed(books.view(channel), first=first)


def spend(books: Books, channel: Channel, charged: NanoUsd) -> None:
    """Count a capture on its channel; the last one of a closed channel winds it up."""
    channel.spend(charged)
    books.channels_changed.add(channel.id)
    if channel.status == "closed":
        _wind_up(books, channel)


def write_receipt(books: Books, op: Capture) -> None:
    """The receipt of a request, a row of its capture's commit."""
    row = books.channel_of(op.account_id)
    if row is None or op.challenge_id is None:
        raise InvariantViolated(f"a receipt for {op.request_id}, which no channel paid")
    books.new_receipts.append(
        (
            op.request_id,
            row.id,
            op.challenge_id,
            base_units_down(row.accepted),
            base_units_down(row.spent),
            op.tokens_used,
            books.now,
        )
    )


def observe(books: Books, op: Observe) -> Changed | Refused:
    """Take the chain's word: what it paid out is ours, what it ended is over."""
    channel = _channel(books, op.channel_id)
    if channel is None:
        return Refused("channel-not-found")
    if channel.status == "closed":
        return Changed(books.view(channel), first=False)
    settled = channel.settled if op.settled is None else BaseUnits(max(channel.settled, min(op.settled, AMOUNT_MAX)))
    if not op.finalized and op.deposit < settled:
        # No deposit is below what it paid out: a node that is behind, or in the middle of a settlement.
        return Changed(books.view(channel), first=False)
    paid = settled > channel.settled
    if paid:
        # It never falls, so that it is true however old the word is.
        _paid_out(books, channel, settled)
        books.channels_changed.add(channel.id)
    if op.block < channel.seen_block and not op.finalized:
        return Changed(books.view(channel), first=paid)
    channel.seen_block = max(channel.seen_block, op.block)
    channel.close_requested_at = op.close_requested_at
    books.channels_changed.add(channel.id)
    if op.finalized:
        channel.status = "closed"
        _wind_up(books, channel)
    else:
        channel.deposit = BaseUnits(min(op.deposit, AMOUNT_MAX))
    return Changed(books.view(channel))


def _paid_out(books: Books, channel: Channel, settled: BaseUnits) -> None:
    amount = NanoUsd((settled - channel.settled) * NANO_PER_BASE_UNIT)
    channel.settled = settled
    channel.published = max(channel.published, settled)
    books.new_transfers.append(
        Transfer(
            f"{channel.id}:s{settled}",
            transfers.SETTLEMENT,
            transfers.POSTED,
            TREASURY,
            escrow_account(channel.id),
            amount,
            None,
            None,
            None,
            books.now,
        )
    )


def _wind_up(books: Books, channel: Channel) -> None:
    """End a closed channel's accounts, once nothing is held: unspent credit and what is left of the claim."""
    account = books.account(channel_account(channel.id))
    if account.debits_pending:
        return
    unspent = NanoUsd(channel.accepted - channel.spent)
    escrow = escrow_account(channel.id)
    if unspent:
        account.debit(unspent)
        books.accounts_changed.add(account.id)
        _post(books, f"{channel.id}:unspent", kind=transfers.UNSPENT, debit=account.id, credit=escrow, amount=unspent)
    left = channel.exposure
    if left > 0:
        kind = transfers.DUST if left < NANO_PER_BASE_UNIT else transfers.UNCOLLECTED
        _post(books, f"{channel.id}:rest", kind=kind, debit=ADJUSTMENTS, credit=escrow, amount=left)
    elif left < 0:
        _post(
            books,
            f"{channel.id}:rest",
            kind=transfers.OVERPAID,
            debit=escrow,
            credit=ADJUSTMENTS,
            amount=NanoUsd(-left),
        )


def _post(books: Books, transfer_id: str, *, kind: str, debit: str, credit: str, amount: NanoUsd) -> None:
    books.new_transfers.append(
        Transfer(transfer_id, kind, transfers.POSTED, debit, credit, amount, None, None, None, books.now)
    )


def plan_settlement(books: Books, op: PlanSettlement) -> Changed | Refused:
    """Write an intent. Rule 2: while a channel is open, no voucher above what was spent goes on chain."""
    channel = _channel(books, op.channel_id)
    if channel is None:
        return Refused("channel-not-found")
    if op.settlement_id in books.settlements_done:
        return Changed(books.view(channel), first=False, capture=books.settlements_done[op.settlement_id])
    view = books.view(channel)
    if channel.id in books.settlements_open:
        return Refused("settlement_open", channel=view)
    if channel.status == "closed":
        return Refused("channel-finalized", channel=view)
    if op.kind == "close":
        if channel.status != "closing" or view.held:
            return Refused("channel_busy", channel=view)
        capture = BaseUnits(max(base_units_down(channel.spent), channel.settled))
        if capture > op.amount:
            return Refused("voucher_short", channel=view)
        if op.whole:
            capture = op.amount
    else:
        capture = op.amount
        if nano_usd_of(op.amount) > channel.spent or op.amount <= channel.settled:
            return Refused("not_spent", channel=view)
    channel.publish(op.amount)
    books.channels_changed.add(channel.id)
    books.settlements_open[channel.id] = op.settlement_id
    books.settlements_done[op.settlement_id] = capture
    books.new_settlements.append(
        (
            op.settlement_id,
            channel.id,
            op.kind,
            op.amount,
            capture,
            op.signature,
            op.account,
            "intent",
            None,
            None,
            None,
            None,
            0,
            None,
            books.now,
            books.now,
        )
    )
    return Changed(books.view(channel), capture=capture)
