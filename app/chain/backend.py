"""The channel backends' protocol: all that Farebox needs of a chain, whichever it is.

Nothing here is awaited inside a stream. Amounts are in token base units; block times are seconds of
chain time, which is not ours. Reads and decoding have no effect; `broadcast` may be repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NewType, Protocol

from app.money import BaseUnits
from app.mpp.descriptor import Descriptor
from app.mpp.voucher import VoucherDomain

ChainSeconds = NewType("ChainSeconds", int)

EventKind = Literal["opened", "topped_up", "settled", "close_requested", "close_request_cancelled", "closed"]


class ChainUnavailable(Exception):
    """The node did not answer, or not with sense. Nothing is known to have happened; a retry may help."""


class TransactionRefused(Exception):
    """A client's transaction is not what was asked for, or the chain rejected it. The message is for the client."""

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        # Malformed: 400; otherwise it is a problem of proof or balance: 402.
        self.malformed = malformed


@dataclass(frozen=True, slots=True)
class Offer:
    """What a challenge offers: one escrow on one chain, in one token, for one payee. Lowercase hexadecimal.

    ``operator`` is the payee-side account that may settle and close besides the payee (v2), or None.
    """

    backend: str
    method: Literal["tempo", "evm"]
    protocol: Literal["v1", "v2"]
    chain_id: int
    escrow: str
    currency: str
    recipient: str
    operator: str | None
    fee_payer: bool
    domain: VoucherDomain
    # Whether clients add to the deposit in mid-stream by themselves, and whether our close can capture
    # less than the voucher that it shows.
    tops_up: bool
    captures_less: bool


@dataclass(frozen=True, slots=True)
class Funding:
    """A client's funding transaction, decoded and found to be exactly what was asked for.

    ``raw`` is what to broadcast (None: the client did that itself, or we call with its authorization:
    then ``authorization`` says so and `prepare` makes ``raw``). ``tx_hash`` is of what will be mined.
    ``amount`` is 0 before `prepare` where only the transaction that a hash names says what was deposited.
    """

    kind: Literal["open", "topUp"]
    channel_id: str
    descriptor: Descriptor
    amount: BaseUnits
    tx_hash: str | None
    raw: bytes | None = field(default=None, repr=False)
    sponsored: bool = False
    authorization: Mapping[str, Any] | None = field(default=None, repr=False)

    def with_transaction(self, raw: bytes, tx_hash: str) -> "Funding":
        """The same funding as the transaction that will be broadcast."""
        return replace(self, raw=raw, tx_hash=tx_hash)

    def with_amount(self, amount: BaseUnits) -> "Funding":
        """The same funding with the deposit that the client's own transaction makes."""
        return replace(self, amount=amount)


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A channel as the chain has it at ``block``. A channel that never was is None instead."""

    deposit: BaseUnits
    settled: BaseUnits
    close_requested_at: ChainSeconds  # 0: not requested
    finalized: bool
    block: int


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in a block. ``fee`` is in base units of the fee token, or None where fees are native."""

    tx_hash: str
    succeeded: bool
    block: int
    fee: BaseUnits | None
    fee_native: int = 0


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction of ours, signed: what the outbox keeps before it is broadcast."""

    raw: bytes = field(repr=False)
    tx_hash: str = ""
    nonce: int = 0


@dataclass(frozen=True, slots=True)
class Head:
    """The chain's newest block."""

    block: int
    timestamp: ChainSeconds


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """One escrow event about one channel, in the order of the chain."""

    kind: EventKind
    channel_id: str
    block: int
    tx_hash: str


class ChannelBackend(Protocol):
    """One `[[mpp.channels]]` entry at work. Every method that is awaited may raise `ChainUnavailable`."""

    @property
    def offer(self) -> Offer:
        """What challenges say about it."""
        ...

    @property
    def account(self) -> str:
        """The address that signs settlements, which the lease is named after."""
        ...

    async def check(self) -> None:
        """Chain id, the token's six decimals, the escrow's code. Raises `SettingsError` where they are wrong."""
        ...

    def decode_open(self, payload: Mapping[str, Any], *, source: str | None = None) -> Funding:
        """An ``open`` payload, checked against the offer without asking the chain. Raises `TransactionRefused`.

        Target, selector, payee, token, operator, deposit, one channel; ``channelId`` recomputed. ``source`` is
        the credential's, which must be the payer where it is there, and must be there for a ``hash`` (evm).
        """
        ...

    def decode_top_up(
        self, payload: Mapping[str, Any], *, channel_id: str, descriptor: Descriptor, source: str | None = None
    ) -> Funding:
        """A ``topUp`` payload, checked likewise against the channel. Raises `TransactionRefused`."""
        ...

    async def prepare(self, funding: Funding, *, nonce: int | None = None) -> Funding:
        """Our signature where we pay the fees, within the policy and the budget, or the call that carries
        an authorization: afterwards ``raw``, ``tx_hash`` and ``amount`` are final. Raises `TransactionRefused`.

        ``nonce`` is one of the settlement account, given out under its lease; only a funding with an
        ``authorization`` needs it. Sponsored twice, a transaction is the same and reserved for once.
        """
        ...

    async def broadcast(self, raw: bytes) -> None:
        """Hand a transaction to the node. One that is known or mined already is a success.

        Raises `TransactionRefused` where the node says that it can never be mined.
        """
        ...

    async def mined(self, tx_hash: str) -> Mined | None:
        """The transaction's receipt once it has the configured confirmations; None while it has not.

        What a transaction that we sponsored has cost is given back to the budget here: ask for every one.
        """
        ...

    async def wait(self, tx_hash: str, *, timeout_s: float) -> Mined | None:
        """`mined`, waited for; None after ``timeout_s``: not a failure."""
        ...

    async def channel(self, channel_id: str) -> ChannelState | None:
        """The channel's state, at a block no older than any that `mined` has reported.

        None: no sign that it ever was, which is no evidence that it is over; only ``finalized`` is.
        """
        ...

    async def next_nonce(self) -> int:
        """The settlement account's next nonce by the chain, without transactions still in its pool."""
        ...

    async def sign_settle(
        self, *, channel_id: str, descriptor: Descriptor, amount: BaseUnits, signature: str, nonce: int
    ) -> Signed:
        """A settlement of a voucher in full. Raises `TransactionRefused` where the chain would revert it."""
        ...

    async def sign_close(
        self,
        *,
        channel_id: str,
        descriptor: Descriptor,
        amount: BaseUnits,
        capture: BaseUnits,
        signature: str,
        nonce: int,
    ) -> Signed:
        """A close that captures ``capture`` in all and shows a voucher of ``amount``.

        With nothing ever captured and no voucher, ``amount`` and ``capture`` are 0 and the signature empty.
        Where the offer does not ``captures_less``, they must be equal (`ValueError`). Raises `TransactionRefused`.
        """
        ...

    async def head(self) -> Head:
        """The newest block."""
        ...

    async def events(self, *, first: int, last: int) -> Sequence[ChannelEvent]:
        """Escrow events of our payee's channels in blocks ``first..last``, which the caller keeps few.

        Raises `ChainUnavailable` where the node has not got to ``last``.
        """
        ...

    async def aclose(self) -> None:
        """Give connections back."""
        ...
