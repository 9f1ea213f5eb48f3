"""What must be true after any number of kills: of the books, and between them and what clients saw."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from tests.faults.load import MARK, TOKENS_MAX, Load, Record
from tests.faults.wire import OUTPUT_PRICE, assert_billed, price
from tests.serving import FareboxServer

# A killed server's clients lose their answers; these are the answers that they can get otherwise.
STATUSES = {None, 200, 400, 402, 409, 502, 503}

_REQUESTS = """
SELECT r.id, r.account_id, r.stream, r.output_limit, r.ceiling, o.status, o.prompt_tokens, o.completion_tokens,
    o.price, o.charged, o.loss,
    (SELECT count(*) FROM outcomes WHERE request_id = r.id) AS outcomes,
    (SELECT count(*) FROM deliveries WHERE request_id = r.id) AS marks
FROM requests r LEFT JOIN outcomes o ON o.request_id = r.id
"""
_LAST_MARKS = """
SELECT d.request_id, d.used, d.window FROM deliveries d
WHERE d.sequence = (SELECT max(sequence) FROM deliveries WHERE request_id = d.request_id)
"""


@dataclass(slots=True)
class Proof:
    """The rows of one load, and the checks."""

    load: Load
    rows: dict[str, dict[str, Any]]
    marks: dict[str, dict[str, Any]]
    by_mark: dict[int, list[dict[str, Any]]]

    @classmethod
    def of(cls, load: Load) -> "Proof":
        """Read the books."""
        accounts = {f"customer:{payer.customer_id}" for payer in (*load.rich, *load.poor)}
        rich = {f"customer:{payer.customer_id}" for payer in load.rich}
        rows = {row["id"]: row for row in load.server.rows(_REQUESTS) if row["account_id"] in accounts}
        by_mark: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows.values():
            if row["account_id"] in rich:
                by_mark[row["output_limit"]].append(row)
        marks = {row["request_id"]: row for row in load.server.rows(_LAST_MARKS)}
        return cls(load, rows, marks, by_mark)

    def check(self) -> None:
        """All of it."""
        assert_books(self.load.server)
        for row in self.rows.values():
            self._ended_well(row)
        for record in self.load.records:
            self._seen_is_billed(record)
        for number in range(1, self.load.asked + 1):
            self._charged_once(number)

    def statuses(self) -> set[str]:
        """The ways in which requests ended."""
        return {row["status"] for row in self.rows.values()}

    def _ended_well(self, row: dict[str, Any]) -> None:
        assert row["outcomes"] == 1, row
        assert row["charged"] + row["loss"] == row["price"], row
        assert 0 <= row["charged"] <= row["ceiling"], row
        mark = self.marks.get(row["id"])
        if row["status"] == "swept":
            # Of an answer that never began nothing is billed, and of the others at most the mark.
            assert row["charged"] <= (mark["used"] + mark["window"] if mark else 0), (row, mark)
            assert row["stream"] or row["charged"] == 0, row
        elif row["status"] != "completed":
            assert row["price"] == price(
                prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]
            ), row
            assert row["stream"] or row["charged"] == 0, row
            # A client that left before the first token owes the prompt at most.
            assert mark or row["charged"] == 0 or (row["status"] == "aborted" and not row["completion_tokens"]), row

    def _seen_is_billed(self, record: Record) -> None:
        ask, seen = record.ask, record.seen
        assert seen.status in STATUSES, seen
        if seen.status != 200:
            row = self.rows.get(seen.request_id or "")
            assert row is None or row["charged"] == 0, (row, seen)
            return
        assert seen.request_id is not None, seen
        row = self.rows[seen.request_id]
        if seen.whole:
            assert_billed(seen, row)
            return
        if seen.left or seen.replayed:
            return
        # What was charged beyond what this client saw: the prompt, and at most one window.
        mark = self.marks.get(row["id"])
        assert mark is not None or row["charged"] == 0, (row, seen)
        window = mark["window"] if mark is not None else 0
        if row["status"] == "completed":
            window = 0
            assert row["completion_tokens"] * OUTPUT_PRICE + row["prompt_tokens"] * 1000 == row["charged"], row
            # The kill came between the capture and the last bytes, so all of the text may be seen or not.
            return
        seen_price = price(prompt_tokens=ask.prompt_bytes // 2, completion_tokens=seen.tokens)
        assert row["charged"] <= seen_price + window, (row, seen.tokens, window)
        if seen.error is not None:
            # An answer that ended with an error event was seen to its end: nothing else is billed.
            rounding = 2 + seen.tokens // 50 + len(seen.texts)
            assert abs(row["completion_tokens"] - seen.tokens) <= rounding, (row, seen.tokens, seen.error)

    def _charged_once(self, number: int) -> None:
        runs = self.by_mark.get(MARK + number, [])
        charged = [row for row in runs if row["charged"]]
        assert len(charged) <= 1, runs

    def check_repeated(self, repeated: list[Record]) -> None:
        """Requests with an idempotency key that were sent again after everything was resolved."""
        earlier: dict[str, list[Record]] = defaultdict(list)
        for record in self.load.records:
            if record.ask.key is not None and all(record is not each for each in repeated):
                earlier[record.ask.key].append(record)
        for record in repeated:
            assert record.ask.key is not None
            self._replayed(record, earlier[record.ask.key])

    def _replayed(self, record: Record, earlier: list[Record]) -> None:
        seen, runs = record.seen, self.by_mark[MARK + record.ask.number]
        completed = [row for row in runs if row["status"] == "completed" and row["id"] != seen.request_id]
        assert not completed, (runs, seen)
        if seen.status == 409:
            cut = [row for row in runs if row["status"] == "swept" and row["id"] in self.marks]
            assert cut, (runs, seen)
            assert seen.error is not None
            assert seen.error["code"] == "idempotency_answer_not_kept", seen
        for before in earlier:
            if before.seen.whole:
                assert seen.whole, (before, seen)
                assert seen.replayed
                assert seen.request_id == before.seen.request_id
                assert (seen.texts, seen.usage) == (before.seen.texts, before.seen.usage)
                if not seen.stream:
                    assert seen.body == before.seen.body


def assert_books(server: FareboxServer) -> None:
    """The books are proven, nothing is held, and nobody is below a limit."""
    server.assert_green()
    assert server.rows("SELECT id FROM holds") == []
    accounts = server.rows("SELECT * FROM accounts")
    for row in accounts:
        assert row["debits_pending"] == 0, row
        assert row["credits_posted"] - row["debits_posted"] + row["credit_limit"] >= 0, row
    assert server.rows("SELECT id FROM api_keys WHERE held <> 0") == []


assert TOKENS_MAX < MARK, "a script must not meet its limit"
