"""What must be true after random failures of providers: of the rows, what providers saw, and what clients got."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson
from sqlalchemy import Row

from app.reconcile.ledger_check import check
from app.serving import SLOW_READER_S
from app.tables import attempts, holds, outcomes, requests, transfers
from tests.faults.routing_world import COMMENT, OUTPUT_MAX, SIZE, Done, World, prices
from tests.faults.scripted_providers import Called, images_made, report
from tests.ledger.proof import prove, rows

LEASE_S = 30


def owed(found: Row[Any], provider: str, *, share: int) -> int:
    """Nano-USD for what an outcome says was used, at what the operator wrote down."""
    price = prices(provider, share=share)
    units = orjson.loads(found.units or "{}")
    nano = Decimal(price["input"]) * 1000 * found.prompt_tokens + Decimal(price["output"]) * 1000 * (
        found.completion_tokens
    )
    nano += Decimal(price["per_image"][SIZE]) * 10**9 * units.get(f"image:{SIZE}", 0)
    nano += Decimal(price["per_character"]) * 10**9 * units.get("character", 0)
    return int(nano.to_integral_value(ROUND_CEILING))


@dataclass
class Proof:
    """The rows of one run beside what providers saw and clients got. ``seen`` counts what was there to be proven."""

    world: World
    seen: Counter[str]
    requests: dict[str, Row[Any]] = field(default_factory=dict)
    outcomes: dict[str, Row[Any]] = field(default_factory=dict)
    attempts: dict[str, list[Row[Any]]] = field(default_factory=lambda: defaultdict(list))
    overruns: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """All of it."""
        engine = self.world.engine
        self.requests = {row.id: row for row in rows(engine, requests)}
        ended = rows(engine, outcomes)
        self.outcomes = {row.request_id: row for row in ended}
        assert len(ended) == len(self.outcomes) == len(self.requests)
        assert self.outcomes.keys() == self.requests.keys()
        for row in sorted(rows(engine, attempts), key=lambda row: row.number):
            self.attempts[row.request_id].append(row)
        self.overruns = {row.request_id: row.amount for row in rows(engine, transfers) if row.kind == "overrun"}
        assert rows(engine, holds) == []
        assert not self.world.proxy.in_flight
        prove(engine)
        found = check(engine, self.world.clock, LEASE_S)
        assert found.green, found.findings[:5]
        for done in self.world.done:
            if done.id in self.requests:
                self._served(done)
            else:
                self._not_served(done)
        assert self.requests.keys() <= {done.id for done in self.world.done}
        self._keys()

    def _not_served(self, done: Done) -> None:
        """Refused or replayed: no provider knows of it."""
        assert done.id not in self.world.stage.calls
        assert done.replayed or done.error is not None
        self.seen["replayed" if done.replayed else f"refused: {done.error and done.error.code}"] += 1

    def _served(self, done: Done) -> None:
        calls = self.world.stage.calls.get(done.id, [])
        outcome = self.outcomes[done.id]
        self._recorded(done, calls, outcome)
        self._failed_over_safely(calls)
        self._bounded(done, calls, outcome)
        if outcome.status == "completed":
            self._billed_as_reported(done, calls[-1], outcome)
        else:
            self._billed_no_more_than_seen(done, calls, outcome)
        self._told(done, outcome)
        if done.ask.only is not None:
            return
        self.seen[outcome.status] += 1
        self.seen[f"completed {done.ask.kind}"] += outcome.status == "completed"

    def _recorded(self, done: Done, calls: list[Called], outcome: Row[Any]) -> None:
        """One row for each call, in order, with what became of it; every upstream was stopped."""
        noted = [(row.provider, row.upstream_model, row.result) for row in self.attempts[done.id]]
        expected = [(called.provider, called.call.upstream_model, called.result) for called in calls]
        cut_short = {"aborted": "abandoned", "exhausted": "funds_exhausted"}.get(outcome.status)
        if cut_short is not None and calls:
            expected[-1] = (*expected[-1][:2], cut_short)
        assert noted == expected
        assert [row.number for row in self.attempts[done.id]] == list(range(1, len(calls) + 1))
        assert len({called.provider for called in calls}) == len(calls)
        assert all(called.closed and called.held > 0 for called in calls)
        self.seen["failed over"] += len(calls) > 1 and outcome.status == "completed"

    def _failed_over_safely(self, calls: list[Called]) -> None:
        """Only after what was surely not done, of which the client has nothing."""
        for called in calls[:-1]:
            assert called.another_may_serve
            self.seen[f"failed over after {called.act.fault or 'nothing'}"] += 1

    def _bounded(self, done: Done, calls: list[Called], outcome: Row[Any]) -> None:
        """Nothing beyond what was admitted, unless a provider reported more than it could be asked for."""
        request = self.requests[done.id]
        assert outcome.charged + outcome.loss == outcome.price
        provider = outcome.provider
        assert outcome.price == (owed(outcome, provider, share=1) if provider else 0)
        assert outcome.cost == (owed(outcome, provider, share=0) if provider else 0)
        if provider is not None:
            assert provider == calls[-1].provider
            assert outcome.upstream_model == calls[-1].call.upstream_model
        over = self.overruns.get(done.id, 0)
        if done.ask.kind in {"images", "speech"} or all(called.honest for called in calls):
            assert (over, outcome.loss) == (0, 0)
        assert outcome.charged - over <= request.ceiling
        self.seen["overrun"] += over > 0
        self.seen["loss"] += outcome.loss > 0

    def _billed_as_reported(self, done: Done, served: Called, outcome: Row[Any]) -> None:
        """In the endpoint's own units, as the provider that served reported them; counted where it did not."""
        assert outcome.provider == served.provider
        tokens, units = (outcome.prompt_tokens, outcome.completion_tokens), orjson.loads(outcome.units or "{}")
        said = served.act.report
        if done.ask.kind == "speech":
            assert (tokens, units) == ((0, 0), {"character": len(done.ask.text)})
            return
        assert outcome.estimated == (said in {"none", "nonsense"})
        self.seen[f"reported {said} by {done.ask.kind}"] += done.ask.only is None
        if done.ask.kind == "images":
            made = images_made(served)
            assert (tokens, units) == ((0, 0), {f"image:{SIZE}": done.ask.n if made is None else min(made, done.ask.n)})
            return
        chats = done.ask.kind != "embeddings"
        most = OUTPUT_MAX * done.ask.n if chats else 0
        if outcome.estimated:
            assert 0 < tokens[0] <= len(done.ask.text) + 16
            assert tokens[1] <= min(len(done.ask.text.encode()) * 4 + 4 * served.tokens, most)
            return
        reported = report(served, output=served.tokens) or {}
        assert tokens == (reported["prompt_tokens"], min(reported["completion_tokens"], most))

    def _billed_no_more_than_seen(self, done: Done, calls: list[Called], outcome: Row[Any]) -> None:
        """What ended before its end: nothing without content, and no more text than was handed on."""
        last = calls[-1] if calls else None
        if done.ask.kind == "speech":
            # A client that hardly reads pays for what breaks off meanwhile.
            its_own = outcome.status == "aborted" or done.reader.waited_s >= SLOW_READER_S
            begun = last is not None and last.content and its_own
            assert outcome.price == 0 or begun
            self.seen["left in mid-speech"] += outcome.price > 0
            self.seen["speech broke off"] += outcome.status == "failed" and bool(done.reader.body)
            return
        if done.ask.kind != "stream" or last is None or not last.begun:
            assert outcome.price == 0
            return
        if outcome.status == "failed" and not last.content:
            assert outcome.price == 0
            return
        self.seen[f"{outcome.status} in mid-stream"] += outcome.price > 0
        if last.act.report != "lie":
            assert outcome.prompt_tokens <= len(done.ask.text) + 16
            assert outcome.completion_tokens <= done.reader.text_bytes

    def _told(self, done: Done, outcome: Row[Any]) -> None:
        """The client was told who served it, and a good answer is no error."""
        reader = done.reader
        if outcome.status == "completed" and not reader.left:
            assert (reader.status, reader.ended, done.error) == (200, True, None)
            if reader.media_type == "text/event-stream; charset=utf-8":
                assert not any("error" in event for event in reader.events)
                assert reader.body.endswith(b"data: [DONE]\n\n")
        if outcome.status == "completed" and "x-farebox-provider" in reader.headers:
            assert reader.headers["x-farebox-provider"] == outcome.provider
        if done.error is not None:
            assert outcome.charged == 0
        self.seen["commented"] += COMMENT in reader.body

    def _keys(self) -> None:
        """Of all requests with one key at most one is charged, and its answer is what the others get."""
        claimed: dict[tuple[str, int], list[Done]] = defaultdict(list)
        for done in self.world.done:
            if done.claims is not None:
                claimed[done.claims].append(done)
        for dones in claimed.values():
            ran = sorted((done for done in dones if done.id in self.requests), key=lambda done: done.id)
            charged = [done for done in ran if self.outcomes[done.id].charged]
            assert len(charged) <= 1
            finished = [done for done in ran if self.outcomes[done.id].status == "completed"]
            assert len(finished) <= 1
            for replay in (done for done in dones if done.replayed):
                assert replay.ask.body() == (charged or finished or ran)[0].ask.body()
                for first in finished:
                    if not first.reader.left and not replay.reader.left:
                        assert replay.reader.body == first.reader.body.replace(COMMENT, b"")
