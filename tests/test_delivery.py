"""Windows on a real journal: what is sent is paid for, and little of it is bookkeeping."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from sqlalchemy import Engine, update

from app.admission import Plan
from app.delivery import EVENT_STREAM, Delivery, FundsExhausted
from app.errors import Overloaded
from app.ledger.account import REVENUE
from app.ledger.ids import new_id
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Admitted, Captured
from app.money import NanoUsd, PicoUsd
from app.pricing.price_book import PriceVersion
from app.pricing.quote import TokenRatio
from app.rails.rail import Payer
from app.routing.candidates import Candidate
from app.settings import LedgerSettings, ModelSettings
from app.tables import accounts, api_keys, deliveries, holds
from app.upstream.provider import Provider
from tests.clocks import FakeClock
from tests.ledger.operations import ACCOUNT, CUSTOMER, KEY, KEY_HASH, MODEL, admit, capture, post, sweep
from tests.ledger.proof import prove, rows
from tests.ledger.seeds import add_customer, add_key
from tests.serving import model

INPUT, OUTPUT = 1000, 4000
PROMPT_TOKENS = 10
PLAN = Plan(
    prompt_tokens_max=PROMPT_TOKENS,
    prompt_tokens_expected=PROMPT_TOKENS,
    limit=10_000,
    limit_defaulted=True,
    choices=1,
    input_price=PicoUsd(INPUT * 1000),
    output_price=PicoUsd(OUTPUT * 1000),
    window=10,
    whole=False,
)
SETTINGS = LedgerSettings(window_growth=4)


class Named:
    name = "p"
    kind = "native"


CANDIDATE = Candidate(
    cast("Provider", Named()),
    ModelSettings.model_validate(model("m")),
    PriceVersion("v", "p", "m", 1, {"input": PLAN.input_price, "output": PLAN.output_price}, {}),
)


@dataclass
class Reader:
    """A client that notes what it got, and what was held durably when it got it."""

    engine: Engine
    started: bool = True
    got: list[bytes] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    async def send(self, data: bytes) -> None:
        self.got.append(data)
        self.held.append(sum(hold.amount for hold in rows(self.engine, holds)))

    async def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        raise AssertionError("not a stream")

    async def begin(self, headers: list[tuple[str, str]], *, media_type: str = EVENT_STREAM) -> None:
        raise AssertionError("delivery does not begin a stream")

    async def end(self) -> None:
        raise AssertionError("delivery does not end a stream")


@dataclass
class Stage:
    """A journal with one customer, and the stream that it pays for."""

    engine: Engine
    clock: FakeClock
    journal: Journal
    kept: list[bytes] = field(default_factory=list)
    sent_bytes: int = 0

    async def stream(
        self, *, funds: int, plan: Plan = PLAN, settings: LedgerSettings = SETTINGS, by_key: bool = False
    ) -> Delivery:
        """Admit a request of a customer with so many nano-USD."""
        add_customer(self.engine, CUSTOMER, credits=funds)
        if by_key:
            add_key(self.engine, KEY, customer_id=CUSTOMER)
        payer = Payer(ACCOUNT, CUSTOMER, KEY if by_key else None, KEY_HASH if by_key else "")
        admission = admit(amount=plan.first_hold, required=plan.required, key=payer.condition(model=MODEL, tokens=10))
        granted = await self.journal.submit(admission)
        assert isinstance(granted, Admitted)
        admitted, held = plan.admitted(granted)
        return Delivery(
            request_id="r1",
            payer=payer,
            model=MODEL,
            plan=admitted,
            held_tokens=held,
            owner_id=admission.owner_id,
            journal=self.journal,
            clock=self.clock,
            settings=settings,
            ratio=TokenRatio(),
            keep=self.kept.append,
        )

    def frames(self, *sizes: int) -> list[tuple[bytes, int]]:
        """Events of so many bytes of text, each with where it ends."""
        made = []
        for size in sizes:
            self.sent_bytes += size
            made.append((b"x" * size, self.sent_bytes))
        return made

    def windows(self) -> list[int]:
        """The tokens of every hold, oldest first; the first without its prompt."""
        found = sorted(rows(self.engine, holds), key=lambda hold: int(hold.id.rpartition(":h")[2]))
        amounts = [hold.amount for hold in found]
        return [(amount - (0 if index else PROMPT_TOKENS * INPUT)) // OUTPUT for index, amount in enumerate(amounts)]

    async def spend(self, amount: int) -> None:
        """Take funds for something else."""
        await self.journal.submit(post("elsewhere", amount=amount, debit=ACCOUNT, credit=REVENUE))

    async def top_up(self, amount: int) -> None:
        """More funds."""
        now = self.clock.now_ms()
        await self.journal.submit(post(new_id("t", now), amount=amount, credit=ACCOUNT))


def funds_for(tokens: int) -> int:
    return PROMPT_TOKENS * INPUT + tokens * OUTPUT


@pytest.fixture
async def stage(engine: Engine, clock: FakeClock) -> AsyncIterator[Stage]:
    journal = Journal(JournalStore(engine, clock), LedgerSettings())
    journal.start()
    yield Stage(engine, clock, journal)
    await journal.close(timeout_s=10)
    prove(engine)


@pytest.fixture
def reader(engine: Engine) -> Reader:
    return Reader(engine)


async def test_nothing_is_sent_before_a_durable_hold_pays_for_it(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    for size in (1, 9, 1, 30, 200, 5, 500):
        await stream.deliver(reader, CANDIDATE, stage.frames(size))
        assert reader.held[-1] >= PLAN.cost(stream.delivered_bytes)
    assert stream.delivered_bytes == stage.sent_bytes == 746
    await stream.settle()


async def test_first_content_is_marked_before_it_is_sent(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    before = stream.content_sent
    await stream.deliver(reader, CANDIDATE, stage.frames(4))
    assert (before, stream.content_sent) == (False, True)
    (mark,) = [row for row in rows(stage.engine, deliveries) if row.sequence == 0]
    assert (mark.provider, mark.price_version_id) == ("p", "v")
    # A crash from here on may bill the prompt and the window by the ratio, 4 bytes a token.
    assert (mark.used, mark.window) == (PROMPT_TOKENS * INPUT, 3 * OUTPUT)
    await stream.settle()


async def test_thousand_token_stream_takes_a_handful_of_ledger_operations(stage: Stage, reader: Reader) -> None:
    defaults = LedgerSettings()
    plan = replace(PLAN, limit=4096, window=defaults.window_tokens_min)
    stream = await stage.stream(funds=10**9, plan=plan, settings=defaults)
    for _ in range(1000):
        await stream.deliver(reader, CANDIDATE, stage.frames(4))
    await stream.settle()
    assert len(reader.got) == 1000
    assert 3 <= stage.journal.operations <= 6


async def test_windows_grow_while_funds_are_ample(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    for _ in range(500):
        await stream.deliver(reader, CANDIDATE, stage.frames(1))
    await stream.settle()
    assert stage.windows() == [10, 40, 160, 640]


async def test_window_never_costs_more_than_its_bound(stage: Stage, reader: Reader) -> None:
    settings = LedgerSettings(window_growth=4, window_cost_max="0.0002")
    stream = await stage.stream(funds=10**9, settings=settings)
    for _ in range(200):
        await stream.deliver(reader, CANDIDATE, stage.frames(1))
    await stream.settle()
    assert stage.windows()[:4] == [10, 40, 50, 50]


async def test_window_is_as_large_as_one_large_event_needs(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    await stream.deliver(reader, CANDIDATE, stage.frames(3000))
    assert stream.delivered_bytes == 3000
    assert stage.windows()[:2] == [10, 2990]
    await stream.settle()


async def test_windows_end_with_the_output_limit(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9, plan=replace(PLAN, limit=60))
    for _ in range(600):
        await stream.deliver(reader, CANDIDATE, stage.frames(1))
    await stream.settle()
    assert stage.windows() == [10, 40, 10]
    assert stream.delivered_bytes == 600


async def test_stream_that_holds_its_ceiling_asks_for_nothing_more(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9, plan=replace(PLAN, limit=100, whole=True))
    await stream.deliver(reader, CANDIDATE, stage.frames(900))
    assert stage.windows() == [100]


async def test_scarce_funds_are_delivered_to_the_last_token(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=funds_for(10_000))
    await stage.spend(funds_for(10_000) - funds_for(25))
    for _ in range(25):
        await stream.deliver(reader, CANDIDATE, stage.frames(1))
    assert stage.windows() == [10, 15]
    with pytest.raises(FundsExhausted) as caught:
        await stream.deliver(reader, CANDIDATE, stage.frames(1))
    assert caught.value.refused.reason == "insufficient_balance"
    assert stream.delivered_bytes == 25
    assert len(reader.got) == 25


async def test_exhausted_stream_sends_what_is_covered_and_keeps_no_more_for_a_replay(
    stage: Stage, reader: Reader
) -> None:
    stream = await stage.stream(funds=funds_for(10_000))
    await stage.spend(funds_for(10_000) - funds_for(10))
    with pytest.raises(FundsExhausted):
        await stream.deliver(reader, CANDIDATE, stage.frames(4, 6, 1, 5))
    assert b"".join(reader.got) == b"data: xxxx\n\ndata: xxxxxx\n\n"
    assert stage.kept == reader.got
    assert stream.delivered_bytes == 10


async def test_exhausted_stream_without_a_covered_event_sends_nothing(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=funds_for(10_000))
    await stage.spend(funds_for(10_000) - funds_for(10))
    with pytest.raises(FundsExhausted):
        await stream.deliver(reader, CANDIDATE, stage.frames(11))
    assert (reader.got, stage.kept, stream.delivered_bytes) == ([], [], 0)


async def test_funds_that_came_after_a_window_was_refused_are_used(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=funds_for(10_000))
    await stage.spend(funds_for(10_000) - funds_for(10))
    # At 6 of 10 bytes the next window is asked for ahead, and refused.
    await stream.deliver(reader, CANDIDATE, stage.frames(6))
    await stage.top_up(7 * OUTPUT)
    await stream.deliver(reader, CANDIDATE, stage.frames(11))
    assert stage.windows() == [10, 7]
    assert stream.delivered_bytes == 17


async def test_stream_of_a_revoked_key_ends_at_its_window(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9, by_key=True)
    with stage.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(update(api_keys).where(api_keys.c.id == KEY).values(revoked_at_ms=stage.clock.now_ms()))
    await stream.deliver(reader, CANDIDATE, stage.frames(10))
    with pytest.raises(FundsExhausted) as caught:
        await stream.deliver(reader, CANDIDATE, stage.frames(1))
    assert caught.value.refused.reason == "revoked"
    assert stream.delivered_bytes == 10


async def test_stream_whose_hold_was_swept_before_its_first_content_sends_nothing(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    await stage.journal.submit(sweep(silent_since=None))
    with pytest.raises(Overloaded, match="nothing was charged"):
        await stream.deliver(reader, CANDIDATE, stage.frames(4))
    assert reader.got == []
    assert not stream.content_sent


async def test_stream_whose_hold_was_swept_while_it_ran_ends(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    await stream.deliver(reader, CANDIDATE, stage.frames(4))
    await stage.journal.submit(sweep(silent_since=None))
    with pytest.raises(Overloaded):
        await stream.deliver(reader, CANDIDATE, stage.frames(400))
    assert stream.delivered_bytes == 4


async def test_window_asked_for_ahead_is_resolved_with_the_others(stage: Stage, reader: Reader) -> None:
    stream = await stage.stream(funds=10**9)
    await stream.deliver(reader, CANDIDATE, stage.frames(8))
    await stream.settle()
    assert stage.windows() == [10, 40]
    assert await stage.journal.submit(capture(price=5000)) == Captured(NanoUsd(5000))
    assert rows(stage.engine, holds) == []
    (account,) = rows(stage.engine, accounts)
    assert (account.debits_pending, account.debits_posted) == (0, 5000)


async def test_client_that_does_not_read_is_seen_to_be_waited_for(stage: Stage) -> None:
    stream = await stage.stream(funds=10**9)
    since: list[float | None] = []

    class Slow(Reader):
        async def send(self, data: bytes) -> None:
            stage.clock.advance(1500)
            since.append(stream.sending_since_s)

    await stream.deliver(Slow(stage.engine), CANDIDATE, stage.frames(4))
    assert since == [0.0]
    after: Any = stream.sending_since_s
    assert after is None
    assert stream.last_sent_s == 1.5
