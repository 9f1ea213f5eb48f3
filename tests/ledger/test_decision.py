from dataclasses import replace

import pytest

from app.clock import MS_PER_MINUTE, EpochMs
from app.errors import InvariantViolated
from app.ledger import transfer as transfers
from app.ledger.account import REFUNDS, REVENUE, TREASURY, customer_account
from app.ledger.books import Books, ClaimRow, DeliveryRow
from app.ledger.decision import INTERRUPTED, STORED, UNSTORED, decide
from app.ledger.operation import (
    Admitted,
    Captured,
    ClaimFound,
    Delivered,
    Extended,
    Post,
    Posted,
    Refused,
)
from app.money import NanoUsd
from app.tables import outcomes
from tests.clocks import START_MS
from tests.ledger.operations import (
    ACCOUNT,
    KEY,
    OWNER,
    admit,
    books,
    budget,
    capture,
    claim,
    condition,
    deliver,
    extend,
    post,
    sweep,
)


def next_batch(before: Books, *, now: int | None = None) -> Books:
    """The books as the next batch reads them, once ``before`` was committed."""
    running = {
        request_id: [hold for hold in held if hold.id not in before.resolved_holds]
        for request_id, held in before.holds.items()
    }
    claims = dict(before.claims)
    for state, answer, request_id in before.resolved_claims:
        for place, row in claims.items():
            if row.request_id == request_id:
                claims[place] = replace(row, state=state, answer=answer)
    claims = {place: row for place, row in claims.items() if row.request_id not in before.forgotten_claims}
    return Books(
        now=EpochMs(now if now is not None else before.now),
        accounts=before.accounts,
        keys=before.keys,
        claims=claims,
        holds=running,
        outcomes_done=before.outcomes_done,
    )


def outcome_row(book: Books) -> dict[str, object]:
    (row,) = book.new_outcomes
    return dict(zip([column.name for column in outcomes.columns], row, strict=True))


def moves(book: Books, *kinds: str) -> list[tuple[str, str, str, int]]:
    return [
        (move.kind, move.debit_account, move.credit_account, move.amount)
        for move in book.new_transfers
        if move.kind in kinds
    ]


class TestAdmit:
    def test_holds_what_was_asked_and_tells_what_was_free(self) -> None:
        book = books(credits=100)
        assert decide(book, admit(amount=70)) == Admitted(NanoUsd(70), NanoUsd(100))
        assert book.accounts[ACCOUNT].available == 30
        assert [hold.id for hold in book.new_holds] == ["r1:h0"]
        assert moves(book, transfers.HOLD) == [(transfers.HOLD, ACCOUNT, REVENUE, 70)]
        assert [row[0] for row in book.new_requests] == ["r1"]

    def test_is_clipped_to_what_is_free(self) -> None:
        assert decide(books(credits=40), admit(amount=70, required=40)) == Admitted(NanoUsd(40), NanoUsd(40))

    def test_is_refused_below_what_is_required_and_changes_nothing(self) -> None:
        book = books(credits=39)
        assert decide(book, admit(amount=70, required=40)) == Refused(
            "insufficient_balance", available=NanoUsd(39), required=NanoUsd(40)
        )
        assert book == books(credits=39)

    def test_may_use_the_credit_limit(self) -> None:
        assert decide(books(credit_limit=50), admit(amount=50, required=50)) == Admitted(NanoUsd(50), NanoUsd(50))

    def test_after_a_lowered_credit_limit_shows_nothing_available(self) -> None:
        book = books()
        book.accounts[ACCOUNT].debits_posted = NanoUsd(30)
        assert decide(book, admit(amount=5, required=0)) == Refused("insufficient_balance")

    def test_of_an_unknown_account_is_a_bug(self) -> None:
        with pytest.raises(InvariantViolated):
            decide(books(), admit(amount=1, account_id=customer_account("nobody")))

    def test_of_neighbours_share_the_balance_in_their_order(self) -> None:
        book = books(credits=100)
        results = [decide(book, admit(f"r{n}", amount=60, required=30)) for n in range(3)]
        assert [getattr(result, "granted", None) for result in results] == [60, 40, None]

    def test_done_twice_holds_once(self) -> None:
        book = books(credits=100)
        first = decide(book, admit(amount=70))
        assert decide(book, admit(amount=70)) == first
        assert book.accounts[ACCOUNT].debits_pending == 70
        assert len(book.new_holds) == 1

    def test_found_committed_answers_what_was_granted(self) -> None:
        book = books(credits=100)
        book.accounts[ACCOUNT].hold(NanoUsd(40))
        book.amounts_done["r1:h0"] = NanoUsd(40)
        assert decide(book, admit(amount=70)) == Admitted(NanoUsd(40), NanoUsd(100))
        assert book.new_transfers == []


class TestKeys:
    def test_reserve_their_limit_and_count_their_minute(self) -> None:
        key = budget(spend_limit=NanoUsd(100))
        book = books(credits=500, key=key)
        decide(book, admit(amount=70, key=condition(tokens=12)))
        assert (key.held, key.free, key.minute_requests, key.minute_tokens) == (70, 30, 1, 12)
        assert book.keys_changed == {KEY}
        assert book.new_holds[0].key_id == KEY

    @pytest.mark.parametrize("limit", ["spend_limit", "spend_limit_month"])
    def test_clip_what_is_granted(self, limit: str) -> None:
        book = books(credits=500, key=budget(**{limit: NanoUsd(30)}))
        assert decide(book, admit(amount=70, key=condition())) == Admitted(NanoUsd(30), NanoUsd(30))

    def test_refuse_beyond_their_limit_by_name(self) -> None:
        book = books(credits=500, key=budget(spend_limit=NanoUsd(30)))
        assert decide(book, admit(amount=70, required=31, key=condition())) == Refused(
            "spend_limit", available=NanoUsd(30), required=NanoUsd(31)
        )
        assert not book.keys_changed

    def test_with_more_than_the_balance_leave_the_balance_to_refuse(self) -> None:
        book = books(credits=20, key=budget(spend_limit=NanoUsd(30)))
        refused = decide(book, admit(amount=70, required=31, key=condition()))
        assert refused == Refused("insufficient_balance", available=NanoUsd(20), required=NanoUsd(31))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"revoked_at_ms": START_MS}, "revoked"),
            ({"hash": "rotated"}, "revoked"),
            ({"expires_at_ms": START_MS}, "expired"),
            ({"models": '["other"]'}, "model_not_allowed"),
        ],
    )
    def test_that_may_not_are_refused_at_once_and_in_mid_stream(self, changes: dict[str, object], reason: str) -> None:
        refused = books(credits=100, key=budget(**changes))
        assert decide(refused, admit(amount=10, key=condition())) == Refused(reason)
        running = books(credits=100, key=budget())
        decide(running, admit(amount=10, key=condition()))
        running.keys[KEY] = replace(running.keys[KEY], **changes)  # type: ignore[arg-type]
        assert decide(running, extend(sequence=1, amount=10, key=condition())) == Refused(reason)
        assert len(running.new_holds) == 1

    def test_that_are_gone_are_refused(self) -> None:
        assert decide(books(credits=100), admit(amount=10, key=condition())) == Refused("revoked")

    def test_over_their_rate_are_told_when_to_come_back(self) -> None:
        book = books(credits=100, key=budget(requests_per_minute=1))
        decide(book, admit("r1", amount=10, key=condition()))
        assert decide(book, admit("r2", amount=10, key=condition())) == Refused(
            "requests_per_minute", retry_after_s=40, limit=1
        )

    def test_are_free_again_in_the_next_minute(self) -> None:
        book = books(credits=100, key=budget(requests_per_minute=1))
        decide(book, admit("r1", amount=10, key=condition()))
        later = next_batch(book, now=START_MS + MS_PER_MINUTE)
        assert isinstance(decide(later, admit("r2", amount=10, key=condition())), Admitted)

    def test_that_were_refused_for_funds_count_no_request(self) -> None:
        key = budget(requests_per_minute=1)
        decide(books(key=key), admit(amount=10, key=condition()))
        assert (key.minute_requests, key.minute_tokens, key.held) == (0, 0, 0)

    def test_are_charged_what_was_charged(self) -> None:
        key = budget(spend_limit=NanoUsd(100))
        book = books(credits=500, key=key)
        decide(book, admit(amount=70, key=condition(tokens=12)))
        decide(book, capture(price=25, key_id=KEY, tokens_admitted=12, tokens_used=7))
        assert (key.held, key.spent, key.spent_month, key.minute_tokens) == (0, 25, 25, 7)

    def test_keep_the_new_minutes_count_when_a_request_ends_in_another(self) -> None:
        key = budget()
        book = books(credits=500, key=key)
        decide(book, admit("r1", amount=70, key=condition(tokens=12)))
        later = next_batch(book, now=START_MS + MS_PER_MINUTE)
        decide(later, admit("r2", amount=70, key=condition(tokens=5)))
        decide(later, capture("r1", price=25, key_id=KEY, tokens_admitted=12, tokens_used=7))
        assert key.minute_tokens == 5


class TestExtend:
    def test_holds_another_window_and_marks_it(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=40))
        assert decide(book, extend(sequence=1, amount=80, used=33)) == Extended(NanoUsd(60))
        assert [hold.id for hold in book.new_holds] == ["r1:h0", "r1:h1"]
        assert [row[:2] + row[4:6] for row in book.new_deliveries] == [("r1", 1, 33, 60)]

    def test_is_refused_below_what_is_required_and_marks_nothing(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=95))
        assert decide(book, extend(sequence=1, amount=80, required=6)) == Refused(
            "insufficient_balance", available=NanoUsd(5), required=NanoUsd(6)
        )
        assert book.new_deliveries == []

    def test_is_clipped_by_the_keys_limit(self) -> None:
        book = books(credits=500, key=budget(spend_limit=NanoUsd(100)))
        decide(book, admit(amount=70, key=condition()))
        assert decide(book, extend(sequence=1, amount=80, key=condition())) == Extended(NanoUsd(30))

    def test_of_a_request_without_holds_is_refused(self) -> None:
        assert decide(books(credits=100), extend(sequence=1, amount=1)) == Refused("hold_lost")

    def test_done_twice_holds_once(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=40))
        assert [decide(book, extend(sequence=1, amount=20)) for _ in range(2)] == [Extended(NanoUsd(20))] * 2
        assert book.accounts[ACCOUNT].debits_pending == 60


class TestDeliver:
    def test_marks_once(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=40))
        assert [decide(book, deliver(window=40)) for _ in range(2)] == [Delivered()] * 2
        assert [row[:2] for row in book.new_deliveries] == [("r1", 0)]

    def test_of_a_swept_request_is_refused(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=40))
        decide(book, sweep(silent_since=None))
        assert decide(book, deliver(window=40)) == Refused("hold_lost")
        assert book.new_deliveries == []


class TestCapture:
    def test_charges_the_price_and_releases_the_rest_of_several_holds(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, extend(sequence=1, amount=30))
        decide(book, extend(sequence=2, amount=30))
        assert decide(book, capture(price=45)) == Captured(NanoUsd(45))
        payer = book.accounts[ACCOUNT]
        assert (payer.debits_pending, payer.debits_posted, payer.available) == (0, 45, 55)
        assert moves(book, transfers.CAPTURE, transfers.RELEASE) == [
            (transfers.CAPTURE, ACCOUNT, REVENUE, 30),
            (transfers.CAPTURE, ACCOUNT, REVENUE, 15),
            (transfers.RELEASE, ACCOUNT, REVENUE, 0),
        ]
        assert book.resolved_holds == ["r1:h0", "r1:h1", "r1:h2"]

    def test_over_its_holds_takes_the_excess_from_free_funds(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        assert decide(book, capture(price=90)) == Captured(NanoUsd(90))
        assert moves(book, transfers.OVERRUN) == [(transfers.OVERRUN, ACCOUNT, REVENUE, 60)]

    def test_over_its_holds_and_free_funds_records_the_rest_as_loss(self) -> None:
        book = books(credits=100)
        decide(book, admit("r1", amount=30))
        decide(book, admit("r2", amount=50))
        assert decide(book, capture("r1", price=90)) == Captured(NanoUsd(50), NanoUsd(40))
        payer = book.accounts[ACCOUNT]
        # What another request holds is not free.
        assert (payer.debits_pending, payer.available) == (50, 0)
        row = outcome_row(book)
        assert (row["price"], row["charged"], row["loss"]) == (90, 50, 40)

    def test_after_a_lowered_credit_limit_still_takes_its_holds_and_nothing_else(self) -> None:
        book = books(credit_limit=100)
        decide(book, admit(amount=60))
        book.accounts[ACCOUNT].credit_limit = NanoUsd(0)
        assert decide(book, capture(price=80)) == Captured(NanoUsd(60), NanoUsd(20))

    def test_books_what_the_provider_is_owed(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, capture(price=20, cost=8))
        assert moves(book, transfers.COST) == [(transfers.COST, "cost:p", "provider:p", 8)]

    def test_done_twice_charges_once_in_a_batch_and_later(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, capture(price=20))
        assert decide(book, capture(price=20)) == Captured(NanoUsd(20), first=False)
        later = next_batch(book)
        assert decide(later, capture(price=20)) == Captured(NanoUsd(20), first=False)
        assert later.new_transfers == later.new_outcomes == []
        assert len(book.new_outcomes) == 1

    def test_without_hold_or_outcome_is_a_bug(self) -> None:
        with pytest.raises(InvariantViolated):
            decide(books(credits=100), capture(price=1))

    def test_keeps_the_attempts(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        attempt = ("r1", 1, "p", "m", "ok", 200, START_MS, 5)
        decide(book, capture(price=1, attempts=(attempt,)))
        assert book.new_attempts == [attempt]


class TestClaims:
    def test_are_taken_with_the_hold(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30, claim=claim()))
        assert list(book.new_claims) == [(ACCOUNT, "claim")]
        assert book.new_claims[ACCOUNT, "claim"].state == "running"

    def test_are_found_by_a_neighbour_and_later(self) -> None:
        book = books(credits=100)
        decide(book, admit("r1", amount=30, claim=claim()))
        found = ClaimFound("r1", "body", "running", None)
        assert decide(book, admit("r2", amount=30, claim=claim(body_hash="other"))) == found
        assert decide(next_batch(book), admit("r3", amount=30, claim=claim())) == found
        assert book.accounts[ACCOUNT].debits_pending == 30

    def test_of_a_refused_request_are_not_taken(self) -> None:
        book = books(credits=10)
        decide(book, admit("r1", amount=30, required=30, claim=claim()))
        assert isinstance(decide(book, admit("r2", amount=5, claim=claim())), Admitted)

    def test_are_the_accounts_own(self) -> None:
        book = books(credits=100)
        other = customer_account("c2")
        book.accounts[other] = replace(book.accounts[ACCOUNT], id=other)
        decide(book, admit("r1", amount=30, claim=claim()))
        assert isinstance(decide(book, admit("r2", amount=30, account_id=other, claim=claim())), Admitted)

    def test_replay_even_without_funds_or_rate(self) -> None:
        book = books(credits=30, key=budget(requests_per_minute=1))
        decide(book, admit("r1", amount=30, key=condition(), claim=claim()))
        assert isinstance(decide(book, admit("r2", amount=30, key=condition(), claim=claim())), ClaimFound)

    def test_are_not_shown_to_a_revoked_key(self) -> None:
        book = books(credits=100, key=budget(revoked_at_ms=START_MS))
        book.claims[ACCOUNT, "claim"] = ClaimRow("r0", "body", STORED, b"secret", EpochMs(START_MS + 1))
        assert decide(book, admit(amount=30, key=condition(), claim=claim())) == Refused("revoked")

    @pytest.mark.parametrize(("answer", "state"), [(b"stored", STORED), (None, UNSTORED)])
    def test_keep_the_answer_of_a_capture(self, answer: bytes | None, state: str) -> None:
        book = books(credits=100)
        decide(book, admit("r1", amount=30, claim=claim()))
        decide(book, capture("r1", price=20, claimed=True, answer=lambda result: answer))
        assert decide(next_batch(book), admit("r2", amount=30, claim=claim())) == ClaimFound(
            "r1", "body", state, answer
        )

    def test_answers_are_made_from_what_was_charged(self) -> None:
        book = books(credits=25)
        decide(book, admit("r1", amount=20, claim=claim()))
        decide(
            book,
            capture("r1", price=30, claimed=True, answer=lambda result: f"{result.charged}+{result.loss}".encode()),
        )
        assert book.resolved_claims == [(STORED, b"25+5", "r1")]

    def test_of_a_failed_request_are_given_back(self) -> None:
        book = books(credits=100)
        decide(book, admit("r1", amount=30, claim=claim()))
        decide(book, capture("r1", price=0, claimed=True, forget_claim=True))
        assert isinstance(decide(next_batch(book), admit("r2", amount=30, claim=claim())), Admitted)

    @pytest.mark.parametrize(("late_ms", "result"), [(-1, ClaimFound), (0, Admitted)])
    def test_expire(self, late_ms: int, result: type) -> None:
        book = books(credits=100)
        decide(book, admit("r1", amount=30, claim=claim(expires_in_ms=1000)))
        decide(book, capture("r1", price=1, claimed=True))
        later = next_batch(book, now=START_MS + 1000 + late_ms)
        assert isinstance(decide(later, admit("r2", amount=30, claim=claim(expires_in_ms=9000))), result)

    def test_of_an_unclaimed_request_touch_no_claim(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, capture(price=1))
        assert not book.resolved_claims
        assert not book.forgotten_claims


class TestSweep:
    def test_releases_what_was_never_delivered_and_gives_the_claim_back(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30, claim=claim()))
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(0))
        assert book.accounts[ACCOUNT].available == 100
        assert book.forgotten_claims == ["r1"]
        assert book.resolved_claims == []

    def test_bills_what_was_used_and_one_window_once_delivered(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30, claim=claim()))
        decide(book, extend(sequence=1, amount=30))
        book.deliveries["r1"] = DeliveryRow("p", "p:m:1", NanoUsd(20), NanoUsd(15))
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(35))
        assert book.resolved_claims == [(INTERRUPTED, None, "r1")]
        assert book.forgotten_claims == []
        row = outcome_row(book)
        assert (row["status"], row["estimated"], row["provider"]) == ("swept", True, "p")

    def test_never_bills_more_than_was_held(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        book.deliveries["r1"] = DeliveryRow("p", "p:m:1", NanoUsd(20), NanoUsd(15))
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(30))

    def test_bills_a_delivery_of_the_same_batch(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, deliver(window=25))
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(25))

    def test_bills_by_the_newest_mark_of_the_same_batch(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, deliver(window=25))
        decide(book, extend(sequence=1, amount=10, used=22))
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(32))

    @pytest.mark.parametrize(("silent_ms", "lives"), [(0, False), (1, True), (-1, False)])
    def test_is_refused_while_the_owner_lives(self, silent_ms: int, lives: bool) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        book.heartbeats[OWNER] = EpochMs(START_MS + silent_ms)
        result = decide(book, sweep(silent_since=START_MS))
        assert result == (Refused("owner_lives") if lives else Captured(NanoUsd(0)))
        assert book.accounts[ACCOUNT].debits_pending == (30 if lives else 0)

    def test_of_an_owner_without_a_lease_goes_on(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        assert decide(book, sweep(silent_since=START_MS)) == Captured(NanoUsd(0))

    def test_of_ones_own_lost_request_needs_no_silence(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        book.heartbeats[OWNER] = START_MS
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(0))

    def test_after_the_capture_does_nothing(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        decide(book, capture(price=10))
        assert decide(book, sweep(silent_since=None)) == Captured(NanoUsd(0), first=False)
        assert len(book.new_outcomes) == 1

    def test_first_makes_a_late_capture_return_its_result(self) -> None:
        book = books(credits=100)
        decide(book, admit(amount=30))
        book.deliveries["r1"] = DeliveryRow("p", "p:m:1", NanoUsd(5), NanoUsd(5))
        decide(book, sweep(silent_since=None))
        assert decide(book, capture(price=29)) == Captured(NanoUsd(10), first=False)
        assert book.accounts[ACCOUNT].debits_posted == 10

    def test_frees_the_keys_limit(self) -> None:
        key = budget(spend_limit=NanoUsd(40))
        book = books(credits=100, key=key)
        decide(book, admit(amount=30, key=condition()))
        decide(book, sweep(silent_since=None, key_id=KEY))
        assert (key.held, key.free) == (0, 40)


class TestPost:
    def test_credits_a_payer(self) -> None:
        book = books()
        assert decide(book, post("t1", amount=50)) == Posted()
        assert book.accounts[ACCOUNT].available == 50

    def test_done_twice_moves_once_in_a_batch_and_later(self) -> None:
        book = books()
        decide(book, post("t1", amount=50))
        assert decide(book, post("t1", amount=50)) == Posted(first=False)
        assert book.accounts[ACCOUNT].credits_posted == 50
        assert len(book.new_transfers) == 1

    @pytest.mark.parametrize(
        "other",
        [
            post("t1", amount=51),
            post("t1", amount=50, credit="customer:c2"),
            post("t1", amount=50, debit="adjustments"),
        ],
        ids=["amount", "payee", "payer"],
    )
    def test_of_the_same_id_and_other_contents_is_refused(self, other: Post) -> None:
        book = books()
        book.accounts["customer:c2"] = replace(book.accounts[ACCOUNT], id="customer:c2")
        decide(book, post("t1", amount=50))
        assert decide(book, other) == Refused("transfer_differs", available=NanoUsd(50), required=other.transfer.amount)
        assert len(book.new_transfers) == 1

    def test_debits_a_payer_as_far_as_funds_go(self) -> None:
        book = books(credits=50)
        refund = post("t1", amount=51, debit=ACCOUNT, credit=TREASURY)
        assert decide(book, refund) == Refused("insufficient_balance", available=NanoUsd(50), required=NanoUsd(51))
        assert decide(book, post("t2", amount=50, debit=ACCOUNT, credit=TREASURY)) == Posted()
        assert book.accounts[ACCOUNT].available == 0

    def test_a_refund_never_pays_out_what_was_lent(self) -> None:
        book = books(credits=50)
        book.accounts[ACCOUNT].credit_limit = NanoUsd(50)
        refund = post("t1", amount=30, debit=ACCOUNT, credit=REFUNDS, kind=transfers.REFUND)
        assert decide(book, refund) == Posted()
        again = post("t2", amount=30, debit=ACCOUNT, credit=REFUNDS, kind=transfers.REFUND)
        assert decide(book, again) == Refused("insufficient_balance", available=NanoUsd(20), required=NanoUsd(30))

    @pytest.mark.parametrize("side", ["debit", "credit"])
    def test_to_or_from_nobody_is_refused_and_moves_nothing(self, side: str) -> None:
        book = books(credits=50)
        sides = {"debit": ACCOUNT, "credit": ACCOUNT} | {side: "customer:nobody"}
        assert decide(book, post("t1", amount=5, **sides)) == Refused("no_account")
        assert book == books(credits=50)

    def test_between_accounts_that_cannot_refuse_touches_no_balance_row(self) -> None:
        book = books()
        assert decide(book, post("t1", amount=5, debit="provider:p", credit=TREASURY)) == Posted()
        assert not book.accounts_changed
        assert len(book.new_transfers) == 1

    def test_of_a_negative_amount_is_a_bug(self) -> None:
        book = books(credits=50)
        with pytest.raises(InvariantViolated):
            decide(book, post("t1", amount=-5))
        assert book == books(credits=50)
