"""The schema, in SQLAlchemy Core. Migrations are compared with it in `make check`.

Timestamps are integers: milliseconds since the epoch, UTC. Amounts are nano-USD. What happened is
append-only (`transfers`, `requests`, `outcomes`, `attempts`, `deliveries`); what can refuse
(`accounts`, `api_keys`) is one row that is updated conditionally; `holds` indexes the open holds.
On SQLite the busy tables are without rowid: one tree to write instead of two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _amount(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    _amount("debits_pending"),
    _amount("debits_posted"),
    _amount("credits_pending"),
    _amount("credits_posted"),
    _amount("credit_limit"),
    Column("version", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    CheckConstraint(
        "debits_pending >= 0 AND debits_posted >= 0 AND credits_pending >= 0 AND credits_posted >= 0",
        name="never_negative",
    ),
    CheckConstraint("credit_limit >= 0", name="credit_limit"),
    sqlite_with_rowid=False,
)

customers = Table(
    "customers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("customer_id", Text, ForeignKey("customers.id"), nullable=False),
    Column("label", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("models", Text),
    # What its requests say of routing where they say nothing: a JSON object of routing parameters.
    Column("routing", Text),
    _amount("spend_limit", nullable=True),
    _amount("spend_limit_month", nullable=True),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    _amount("spent"),
    _amount("held"),
    Column("month", BigInteger, nullable=False),
    _amount("spent_month"),
    Column("minute", BigInteger, nullable=False),
    Column("minute_requests", BigInteger, nullable=False),
    Column("minute_tokens", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("hash"),
    CheckConstraint("spent >= 0 AND held >= 0 AND spent_month >= 0", name="never_negative"),
    sqlite_with_rowid=False,
)
Index(None, api_keys.c.customer_id)

transfers = Table(
    "transfers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("debit_account", Text, nullable=False),
    Column("credit_account", Text, nullable=False),
    _amount("amount"),
    Column("pending_id", Text),
    Column("request_id", Text),
    Column("note", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    # One resolution per hold, by the database's own word.
    UniqueConstraint("pending_id"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("phase IN ('posted', 'pending', 'post', 'void')", name="phase"),
    CheckConstraint("debit_account <> credit_account", name="two_accounts"),
    sqlite_with_rowid=False,
)

holds = Table(
    "holds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("key_id", Text),
    Column("request_id", Text, nullable=False),
    Column("credit_account", Text, nullable=False),
    _amount("amount"),
    Column("owner_id", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index(None, holds.c.request_id)

owners = Table(
    "owners",
    metadata,
    Column("id", Text, primary_key=True),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("heartbeat_at_ms", BigInteger, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("key_id", Text),
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("output_limit", BigInteger, nullable=False),
    Column("tokens_admitted", BigInteger, nullable=False),
    _amount("ceiling"),
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index(None, requests.c.account_id, requests.c.created_at_ms)

deliveries = Table(
    "deliveries",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("price_version_id", Text, nullable=False),
    _amount("used"),
    _amount("window"),
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("provider", Text),
    Column("upstream_model", Text),
    Column("price_version_id", Text),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("audio_input_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("audio_output_tokens", BigInteger, nullable=False),
    # What is no token, as a JSON object of units and how many were used; null: nothing.
    Column("units", Text),
    Column("estimated", Boolean, nullable=False),
    _amount("price"),
    _amount("charged"),
    _amount("loss"),
    _amount("cost"),
    Column("finish_reason", Text),
    Column("error_code", Text),
    Column("first_token_ms", BigInteger),
    Column("duration_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

attempts = Table(
    "attempts",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("upstream_model", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("status", Integer),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

idempotency_claims = Table(
    "idempotency_claims",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("key_hash", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("answer", LargeBinary),
    Column("expires_at_ms", BigInteger, nullable=False),
    CheckConstraint("state IN ('running', 'stored', 'unstored', 'interrupted')", name="state"),
    sqlite_with_rowid=False,
)
Index(None, idempotency_claims.c.request_id)
Index(None, idempotency_claims.c.expires_at_ms)

price_versions = Table(
    "price_versions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("prices", Text, nullable=False),
    Column("costs", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("provider", "model", "version"),
)

# Copies of on-chain amounts are base units, bounded by `app.channels.channel.AMOUNT_MAX`.
channels = Table(
    "channels",
    metadata,
    Column("id", Text, primary_key=True),
    Column("backend", Text, nullable=False),
    Column("chain_id", BigInteger, nullable=False),
    Column("escrow", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("payer", Text, nullable=False),
    Column("payee", Text, nullable=False),
    Column("operator", Text, nullable=False),
    Column("salt", Text, nullable=False),
    Column("authorized_signer", Text, nullable=False),
    Column("expiring_nonce_hash", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("deposit", BigInteger, nullable=False),
    Column("settled", BigInteger, nullable=False),
    Column("close_requested_at", BigInteger, nullable=False),
    Column("seen_block", BigInteger, nullable=False),
    _amount("recovered"),
    _amount("accepted"),
    _amount("spent"),
    Column("published", BigInteger, nullable=False),
    Column("close_amount", BigInteger),
    Column("close_signature", Text),
    Column("version", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    CheckConstraint("status IN ('open', 'closing', 'closed')", name="status"),
    CheckConstraint("recovered >= 0 AND accepted >= recovered AND spent >= recovered", name="never_falls"),
    CheckConstraint("deposit >= 0 AND settled >= 0 AND published >= 0", name="never_negative"),
    sqlite_with_rowid=False,
)
Index(None, channels.c.status)

vouchers = Table(
    "vouchers",
    metadata,
    Column("channel_id", Text, ForeignKey("channels.id"), primary_key=True),
    Column("amount", BigInteger, primary_key=True),
    Column("signature", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

challenge_claims = Table(
    "challenge_claims",
    metadata,
    Column("id", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index(None, challenge_claims.c.expires_at_ms)

receipts = Table(
    "receipts",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("channel_id", Text, nullable=False),
    Column("challenge_id", Text, nullable=False),
    Column("accepted", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index(None, receipts.c.channel_id, receipts.c.created_at_ms)

# Clients' opens and top-ups: kept before they are broadcast, so that a crash cannot lose a deposit.
fundings = Table(
    "fundings",
    metadata,
    Column("tx_hash", Text, primary_key=True),
    Column("channel_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("escrow", Text, nullable=False),
    Column("descriptor", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("raw", LargeBinary),
    Column("voucher_amount", BigInteger),
    Column("voucher_signature", Text),
    Column("state", Text, nullable=False),
    Column("error", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    CheckConstraint("kind IN ('open', 'topUp')", name="kind"),
    CheckConstraint("state IN ('sent', 'mined', 'failed')", name="state"),
)
Index(None, fundings.c.state)
Index(None, fundings.c.channel_id)

# The outbox: an intent, then the signed transaction, then what the chain said.
settlements = Table(
    "settlements",
    metadata,
    Column("id", Text, primary_key=True),
    Column("channel_id", Text, ForeignKey("channels.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("capture", BigInteger, nullable=False),
    Column("signature", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("nonce", BigInteger),
    Column("raw", LargeBinary),
    Column("tx_hash", Text),
    Column("fee", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    CheckConstraint("kind IN ('settle', 'close')", name="kind"),
    CheckConstraint("state IN ('intent', 'signed', 'confirmed', 'failed')", name="state"),
)
Index(None, settlements.c.channel_id)
Index(None, settlements.c.account, settlements.c.state)

# Who may sign for an account of the chain: one process at a time.
settlers = Table(
    "settlers",
    metadata,
    Column("account", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

# How far an escrow's events were read.
watch_positions = Table(
    "watch_positions",
    metadata,
    Column("escrow", Text, primary_key=True),
    Column("block", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)

sponsored_fees = Table(
    "sponsored_fees",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("day", BigInteger, primary_key=True),
    Column("reserved", BigInteger, nullable=False),
)

# What each sponsored transaction reserved of its day, and what it cost once it was mined.
sponsored_transactions = Table(
    "sponsored_transactions",
    metadata,
    Column("tx_hash", Text, primary_key=True),
    Column("backend", Text, nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("fee", BigInteger),
)

charges = Table(
    "charges",
    metadata,
    Column("tx_hash", Text, primary_key=True),
    Column("challenge_id", Text, nullable=False),
    Column("payer", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("challenge_id"),
)
