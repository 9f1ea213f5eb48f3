"""`farebox ledger check`: proves the books from their rows, or names the rows that are wrong.

Balances are recomputed from the transfers; the trial balance must be zero; and requests, holds,
outcomes, prices and transfers must agree with each other.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from app.clock import MS_PER_SECOND, Clock, EpochMs, to_rfc3339
from app.ledger.account import CHANNEL_PREFIX, CUSTOMER_PREFIX, ESCROW_PREFIX, can_refuse
from app.ledger.decision import SWEPT
from app.money import ZERO, NanoUsd, format_usd
from app.pricing.price_book import PriceVersion
from app.reconcile import channel_rules
from app.reconcile.ledger_check_store import COUNTERS, Balance, LedgerSnapshot, PricedOutcome, open_snapshot
from app.reconcile.ledger_rules import rules

FINDINGS_PER_KIND_MAX = 100
ACCOUNTS_LISTED_MAX = 1000

# Called with the number of steps done, the number of all, and the name of the next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that breaks a rule."""

    kind: str
    row: str
    message: str


@dataclass(slots=True)
class AccountLine:
    """A line of the trial balance: posted amounts. Payers of one class share a line."""

    account: str
    accounts: int = 0
    debits: NanoUsd = ZERO
    credits: NanoUsd = ZERO
    held: NanoUsd = ZERO


@dataclass(slots=True)
class Report:
    """What a check found; green when it found nothing."""

    checked_at_ms: EpochMs
    rows: dict[str, int] = field(default_factory=dict)
    lines: list[AccountLine] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def green(self) -> bool:
        return not self.counts

    @property
    def debits(self) -> NanoUsd:
        return NanoUsd(sum(line.debits for line in self.lines))

    @property
    def credits(self) -> NanoUsd:
        return NanoUsd(sum(line.credits for line in self.lines))

    def add(self, kind: str, row: str, message: str) -> None:
        """Count a finding, and keep it while its kind has few."""
        self.counts[kind] += 1
        if self.counts[kind] <= FINDINGS_PER_KIND_MAX:
            self.findings.append(Finding(kind, row, message))

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object; amounts are exact USD decimals."""
        return {
            "green": self.green,
            "checked_at": to_rfc3339(self.checked_at_ms),
            "rows": self.rows,
            "trial_balance": {
                "debits": format_usd(self.debits),
                "credits": format_usd(self.credits),
                "difference": format_usd(NanoUsd(self.debits - self.credits)),
                "accounts": [
                    {
                        "account": line.account,
                        "accounts": line.accounts,
                        "debits": format_usd(line.debits),
                        "credits": format_usd(line.credits),
                        "held": format_usd(line.held),
                    }
                    for line in self.lines[:ACCOUNTS_LISTED_MAX]
                ],
            },
            "counts": dict(self.counts),
            "findings": [
                {"kind": finding.kind, "row": finding.row, "message": finding.message} for finding in self.findings
            ],
        }

    def to_text(self) -> str:
        """The report for a person: the trial balance, then the findings, then the verdict."""
        table = [("account", "debits", "credits", "held")]
        table += [
            (_name(line), format_usd(line.debits), format_usd(line.credits), format_usd(line.held))
            for line in self.lines[:ACCOUNTS_LISTED_MAX]
        ]
        table.append(("total", format_usd(self.debits), format_usd(self.credits), ""))
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        text = [
            "  ".join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3))]).rstrip()
            for row in table
        ]
        text.append("")
        text += [f"{finding.kind}: {finding.row} {finding.message}" for finding in self.findings]
        for kind, count in self.counts.items():
            if count > FINDINGS_PER_KIND_MAX:
                text.append(f"{kind}: {count - FINDINGS_PER_KIND_MAX} more")
        rows = ", ".join(f"{count} {table_name}" for table_name, count in self.rows.items())
        verdict = "the books balance" if self.green else f"{self.counts.total()} findings: the books do NOT balance"
        return "\n".join([*text, f"{verdict} ({rows})"])


def check(engine: Engine, clock: Clock, lease_ttl_s: float, *, progress: Progress | None = None) -> Report:
    """Prove the books as they stand at one moment. Reads only.

    An owner that has been silent for longer than ``lease_ttl_s`` is gone: its holds are findings.
    """
    with open_snapshot(engine) as snapshot:
        # The clock is read before the first row, so that no owner looks more silent than it is.
        report = Report(clock.now_ms(), rows=snapshot.counts())
        silent_since = EpochMs(report.checked_at_ms - int(lease_ttl_s * MS_PER_SECOND))
        todo = [*rules(), *channel_rules.rules()]
        tell = progress or (lambda _done, _total, _step: None)
        steps = len(todo) + 2
        tell(0, steps, "balances")
        _check_balances(snapshot, report)
        tell(1, steps, "prices")
        _check_prices(snapshot, report)
        for number, rule in enumerate(todo, start=2):
            tell(number, steps, rule.kind)
            for values in snapshot.offenders(rule, silent_since=silent_since):
                report.add(rule.kind, values["row"], rule.message.format_map(values))
        tell(steps, steps, "done")
    return report


def _check_balances(snapshot: LedgerSnapshot, report: Report) -> None:
    """Rows against transfers; the trial balance adds up what the rows say, where there are rows."""
    lines: dict[str, AccountLine] = {}
    for balance in snapshot.balances():
        _check_balance(balance, report)
        held, debits, _, credits = balance.stored or balance.recomputed
        name = _line_name(balance.account_id)
        line = lines.setdefault(name, AccountLine(name))
        line.accounts += 1
        line.debits = NanoUsd(line.debits + debits)
        line.credits = NanoUsd(line.credits + credits)
        line.held = NanoUsd(line.held + held)
    report.lines = sorted(lines.values(), key=lambda line: line.account)
    if report.debits != report.credits:
        report.add("trial_balance", "total", f"debits are {report.debits} and credits {report.credits}")


def _check_balance(balance: Balance, report: Report) -> None:
    if balance.stored is None:
        if can_refuse(balance.account_id):
            report.add("account_missing", balance.account_id, "has transfers and no row")
        return
    for name, stored, recomputed in zip(COUNTERS, balance.stored, balance.recomputed, strict=True):
        if stored != recomputed:
            report.add(
                "account_balance", balance.account_id, f"says {name} {stored}, and its transfers make {recomputed}"
            )


def _check_prices(snapshot: LedgerSnapshot, report: Report) -> None:
    book = snapshot.price_versions()
    for outcome in snapshot.outcomes():
        if outcome.status != SWEPT:
            _check_price(outcome, book, report)


def _check_price(outcome: PricedOutcome, book: Mapping[str, PriceVersion], report: Report) -> None:
    """What was used, at the prices of the version that the request pinned."""
    price, cost = ZERO, ZERO
    if outcome.price_version_id is not None:
        version = book.get(outcome.price_version_id)
        if version is None:
            report.add("price_version_missing", outcome.request_id, f"pins {outcome.price_version_id}, which is gone")
            return
        try:
            price, cost = version.charge(outcome.usage), version.upstream_cost(outcome.usage)
        except (KeyError, ValueError) as error:
            report.add("outcome_unpriceable", outcome.request_id, f"cannot be priced by {version.id}: {error}")
            return
    if outcome.price != price:
        report.add("outcome_price", outcome.request_id, f"has the price {outcome.price}; its usage makes {price}")
    if outcome.cost != cost:
        report.add("outcome_cost", outcome.request_id, f"has the cost {outcome.cost}; its usage makes {cost}")


def _line_name(account_id: str) -> str:
    """Payers share a line: there may be millions of them, and a wrong one is named by its finding."""
    for prefix in (CUSTOMER_PREFIX, CHANNEL_PREFIX, ESCROW_PREFIX):
        if account_id.startswith(prefix):
            return prefix + "*"
    return account_id


def _name(line: AccountLine) -> str:
    return f"{line.account} ({line.accounts})" if line.account.endswith("*") else line.account
