"""What each operation does to the books: decided on rows locked in the current transaction. Pure.

`Books` is the part of the database that a batch of operations touches. The journal's store loads it
under locks, decides each operation in turn (one refusal never fails its neighbours) and writes the
rows that the decisions made, so that every decision holds in the database or not at all.
"""

from app.channels.channel import ChannelView
from app.clock import MS_PER_MINUTE
from app.errors import InvariantViolated
from app.ledger import channel_decision
from app.ledger import transfer as transfers
from app.ledger.account import Account, can_refuse
from app.ledger.books import Books, ClaimRow, DeliveryRow
from app.ledger.budget import KeyBudget, KeyCondition
from app.ledger.operation import (
    AcceptVoucher,
    Admit,
    Admitted,
    Capture,
    Captured,
    ChannelCondition,
    ClaimFound,
    Deliver,
    Delivered,
    Extend,
    Extended,
    Freeze,
    Observe,
    Operation,
    PlanSettlement,
    Post,
    Posted,
    Refused,
    Result,
    Sweep,
)
from app.ledger.transfer import Hold, Transfer
from app.money import ZERO, NanoUsd

SWEPT = "swept"
RUNNING = "running"
STORED = "stored"
UNSTORED = "unstored"
INTERRUPTED = "interrupted"
NO_TOKENS = (0, 0, 0, 0, 0, 0, 0)


def decide(books: Books, operation: Operation) -> Result:
    """Apply one operation to the books: wholly, or not at all."""
    match operation:
        case Admit():
            return _admit(books, operation)
        case Deliver():
            return _deliver(books, operation)
        case Extend():
            return _extend(books, operation)
        case Capture():
            return _capture(books, operation)
        case Sweep():
            return _sweep(books, operation)
        case Post():
            return _post(books, operation)
        case AcceptVoucher():
            return channel_decision.accept_voucher(books, operation)
        case Freeze():
            return channel_decision.freeze(books, operation)
        case Observe():
            return channel_decision.observe(books, operation)
        case PlanSettlement():
            return channel_decision.plan_settlement(books, operation)


def _usable(books: Books, condition: KeyCondition) -> tuple[KeyBudget | None, Refused | None]:
    key = books.keys.get(condition.key_id)
    if key is None:
        return None, Refused("revoked")
    key.roll(books.now)
    refusal = key.usable(condition, now=books.now)
    return key, Refused(refusal.reason) if refusal else None


def _admit(books: Books, op: Admit) -> Result:
    first_hold = f"{op.request_id}:h0"
    account = books.account(op.account_id)
    if first_hold in books.amounts_done:
        granted = books.amounts_done[first_hold]
        return Admitted(granted, NanoUsd(account.available + granted), _view(books, account))
    key: KeyBudget | None = None
    if op.key is not None:
        key, refused = _usable(books, op.key)
        if refused is not None or key is None:
            return refused or Refused("revoked")
    place = (op.account_id, op.claim.key_hash) if op.claim else None
    if place is not None:
        found = books.claims.get(place)
        if found is not None and found.expires_at_ms > books.now:
            return ClaimFound(found.request_id, found.body_hash, found.state, found.answer)
    if key is not None and op.key is not None:
        rate = key.within_rates(op.key, now=books.now)
        if rate is not None:
            return Refused(rate.reason, retry_after_s=rate.retry_after_s, limit=rate.limit)
    free, reason = _free_to_admit(books, account, key, op.channel)
    if free < op.required or reason in channel_decision.STOPS:
        view = _view(books, account)
        return Refused(reason, available=NanoUsd(max(free, 0)), required=op.required, channel=view)
    granted = NanoUsd(min(op.amount, max(free, 0)))
    _hold(books, account, key, op, granted, sequence=0)
    if op.channel is not None:
        channel_decision.claim_challenge(books, op.channel, request_id=op.request_id)
    if key is not None and op.key is not None:
        key.count(op.key.tokens)
    books.new_requests.append(op.request)
    if op.claim is not None and place is not None:
        row = ClaimRow(op.request_id, op.claim.body_hash, RUNNING, None, op.claim.expires_at_ms)
        books.claims[place] = books.new_claims[place] = row
    return Admitted(granted, free, _view(books, account))


def _free_to_admit(
    books: Books, account: Account, key: KeyBudget | None, channel: ChannelCondition | None
) -> tuple[NanoUsd, str]:
    if channel is not None:
        return channel_decision.free_to_admit(books, account, channel)
    if key is not None and key.free < account.available:
        return key.free, "spend_limit"
    return account.available, "insufficient_balance"


def _view(books: Books, account: Account) -> ChannelView | None:
    channel = books.channel_of(account.id)
    return books.view(channel) if channel is not None else None


def _hold(
    books: Books, account: Account, key: KeyBudget | None, op: Admit | Extend, amount: NanoUsd, *, sequence: int
) -> None:
    hold = Hold(
        f"{op.request_id}:h{sequence}",
        account.id,
        key.id if key else None,
        op.request_id,
        op.credit_account,
        amount,
        op.owner_id,
        books.now,
    )
    account.hold(amount)
    books.accounts_changed.add(account.id)
    if key is not None:
        key.hold(amount)
        books.keys_changed.add(key.id)
    books.new_holds.append(hold)
    books.new_transfers.append(transfers.pending(hold))
    books.holds.setdefault(op.request_id, []).append(hold)
    books.amounts_done[hold.id] = amount


def _deliver(books: Books, op: Deliver) -> Result:
    if (op.request_id, 0) not in books.delivered:
        if not books.holds.get(op.request_id):
            return Refused("hold_lost")
        books.delivered.add((op.request_id, 0))
        books.new_deliveries.append(op.row)
        books.deliveries.setdefault(op.request_id, DeliveryRow(*op.row[2:6]))
    return Delivered()


def _extend(books: Books, op: Extend) -> Result:
    hold_id = f"{op.request_id}:h{op.sequence}"
    if hold_id in books.amounts_done:
        return Extended(books.amounts_done[hold_id])
    if not books.holds.get(op.request_id):
        return Refused("hold_lost")
    account = books.account(op.account_id)
    key: KeyBudget | None = None
    free, reason = account.available, "insufficient_balance"
    if op.key is not None:
        key, refused = _usable(books, op.key)
        if refused is not None or key is None:
            return refused or Refused("revoked")
        if key.free < free:
            free, reason = key.free, "spend_limit"
    if op.channel is not None:
        free, reason = channel_decision.free_to_extend(books, account, op.channel)
    if free < op.required or reason in channel_decision.STOPS:
        view = _view(books, account)
        return Refused(reason, available=NanoUsd(max(free, 0)), required=op.required, channel=view)
    granted = NanoUsd(min(op.amount, max(free, 0)))
    _hold(books, account, key, op, granted, sequence=op.sequence)
    row = op.delivery(granted)
    books.new_deliveries.append(row)
    books.deliveries[op.request_id] = DeliveryRow(*row[2:6])
    return Extended(granted)


def _settle_holds(books: Books, held: list[Hold], *, price: NanoUsd, tokens_over: int) -> Captured:
    """Capture ``price`` from a request's holds; an excess comes from free funds, as far as they go."""
    account = books.account(held[0].account_id)
    key = books.keys.get(held[0].key_id) if held[0].key_id else None
    held_total = transfers.total(held)
    captured = NanoUsd(min(price, held_total))
    account.resolve(held_total, captured=captured)
    books.new_transfers += transfers.resolve(held, amount=captured, at=books.now)
    excess = NanoUsd(price - captured)
    overrun = NanoUsd(max(0, min(excess, account.available)))
    if overrun:
        account.debit(overrun)
        request_id = held[0].request_id
        books.new_transfers.append(
            Transfer(
                f"{request_id}:over",
                transfers.OVERRUN,
                transfers.POSTED,
                account.id,
                held[0].credit_account,
                overrun,
                None,
                request_id,
                None,
                books.now,
            )
        )
    charged = NanoUsd(captured + overrun)
    books.accounts_changed.add(account.id)
    if key is not None:
        key.roll(books.now)
        key.resolve(held_total, charged=charged, tokens_over=tokens_over)
        books.keys_changed.add(key.id)
    books.resolved_holds += [hold.id for hold in held]
    books.holds[held[0].request_id] = []
    channel = books.channel_of(account.id)
    if channel is None:
        return Captured(charged, NanoUsd(excess - overrun))
    channel_decision.spend(books, channel, charged)
    return Captured(charged, NanoUsd(excess - overrun), channel=books.view(channel))


def _capture(books: Books, op: Capture) -> Result:
    held = books.holds.get(op.request_id)
    if not held:
        done = books.outcomes_done.get(op.request_id)
        if done is None:
            raise InvariantViolated(f"request {op.request_id} has neither holds nor an outcome")
        return Captured(*done, first=False, channel=_view(books, books.account(op.account_id)))
    same_minute = op.admitted_at_ms // MS_PER_MINUTE == books.now // MS_PER_MINUTE
    outcome = op.outcome
    result = _settle_holds(
        books, held, price=outcome.price, tokens_over=op.tokens_used - op.tokens_admitted if same_minute else 0
    )
    if outcome.cost and outcome.provider:
        books.new_transfers.append(
            Transfer(
                f"{op.request_id}:cost",
                transfers.COST,
                transfers.POSTED,
                f"cost:{outcome.provider}",
                f"provider:{outcome.provider}",
                outcome.cost,
                None,
                op.request_id,
                None,
                books.now,
            )
        )
    books.new_outcomes.append(
        (
            op.request_id,
            outcome.status,
            outcome.provider,
            outcome.upstream_model,
            outcome.price_version_id,
            *outcome.tokens,
            outcome.units,
            outcome.estimated,
            outcome.price,
            result.charged,
            result.loss,
            outcome.cost,
            outcome.finish_reason,
            outcome.error_code,
            outcome.first_token_ms,
            outcome.duration_ms,
            books.now,
        )
    )
    books.new_attempts += op.attempts
    if op.challenge_id is not None and result.channel is not None:
        channel_decision.write_receipt(books, op)
    books.outcomes_done[op.request_id] = (result.charged, result.loss)
    if op.claimed:
        if op.forget_claim:
            books.forgotten_claims.append(op.request_id)
        else:
            answer = op.answer(result) if op.answer else None
            books.resolved_claims.append((STORED if answer is not None else UNSTORED, answer, op.request_id))
    return result


def _sweep(books: Books, op: Sweep) -> Result:
    held = books.holds.get(op.request_id)
    if not held:
        return Captured(ZERO, first=False)
    heartbeat = books.heartbeats.get(op.owner_id)
    if op.silent_since_ms is not None and heartbeat is not None and heartbeat > op.silent_since_ms:
        return Refused("owner_lives")
    mark = books.deliveries.get(op.request_id)
    price = NanoUsd(min(transfers.total(held), mark.used + mark.window)) if mark else ZERO
    result = _settle_holds(books, held, price=price, tokens_over=0)
    books.new_outcomes.append(
        (
            op.request_id,
            SWEPT,
            mark.provider if mark else None,
            None,
            mark.price_version_id if mark else None,
            *NO_TOKENS,
            None,
            True,
            price,
            result.charged,
            result.loss,
            ZERO,
            None,
            "interrupted",
            None,
            max(0, books.now - held[0].created_at_ms),
            books.now,
        )
    )
    books.outcomes_done[op.request_id] = (result.charged, result.loss)
    if mark is None:
        books.forgotten_claims.append(op.request_id)
    else:
        books.resolved_claims.append((INTERRUPTED, None, op.request_id))
    return result


def _post(books: Books, op: Post) -> Result:
    move = op.transfer
    if move.id in books.amounts_done:
        sides = (move.debit_account, move.credit_account)
        if books.amounts_done[move.id] != move.amount or books.sides_done[move.id] != sides:
            return Refused("transfer_differs", available=books.amounts_done[move.id], required=move.amount)
        return Posted(first=False)
    for account_id in (move.debit_account, move.credit_account):
        if can_refuse(account_id) and account_id not in books.accounts:
            return Refused("no_account")
    if can_refuse(move.debit_account):
        payer = books.account(move.debit_account)
        # What was lent by a credit limit can be used, never paid out.
        own = NanoUsd(payer.available - (payer.credit_limit if move.kind == transfers.REFUND else 0))
        if own < move.amount:
            return Refused("insufficient_balance", available=NanoUsd(max(own, 0)), required=move.amount)
        payer.debit(move.amount)
        books.accounts_changed.add(payer.id)
    if can_refuse(move.credit_account):
        books.account(move.credit_account).credit(move.amount)
        books.accounts_changed.add(move.credit_account)
    books.new_transfers.append(move)
    books.amounts_done[move.id] = move.amount
    books.sides_done[move.id] = (move.debit_account, move.credit_account)
    return Posted()
