"""What the backends share: reading an escrow, and getting transactions mined.

A node that is behind must not make a channel that was opened look as if it never was. So the block of
every receipt is remembered, and state is read at a block that is no older, asked for by its number:
a replica which has not got that far says so instead of answering from the past, and is asked again
for a bounded time.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from eth_utils.crypto import keccak

from app.chain import abi, rpc
from app.chain.backend import (
    ChainSeconds,
    ChainUnavailable,
    ChannelEvent,
    ChannelState,
    EventKind,
    Head,
    Mined,
    Offer,
    TransactionRefused,
)
from app.chain.rpc import NodeRefused, Rpc, quantity
from app.chain.signer import Signer
from app.chain.sponsorship import GAS_MAX, FeeBudget
from app.clock import MS_PER_SECOND, Clock
from app.money import BaseUnits, NanoUsd, base_units_down, parse_usd
from app.mpp.descriptor import ZERO_HASH, hash_of
from app.mpp.voucher import signature_bytes, signing_hash
from app.settings import ChannelSettings, MppSettings, SettingsError

TOKEN_DECIMALS = 6
# A replica is usually a block or two behind.
LAG_POLLS = 40
LAG_POLL_S = 0.1
POLL_FIRST_S = 0.05
POLL_LAST_S = 0.5
EVENTS_MAX = 50_000
# A block may be worth twice the one before within six blocks; what is not used is not paid.
BASE_FEE_HEADROOM = 2

# Not what a contract may say of a channel.
_KNOWN = re.compile(r"already ?known|known transaction|already imported|transaction already exists", re.IGNORECASE)
# The node's trouble, not the transaction's.
_TRANSIENT = re.compile(
    r"pool is full|txpool|rate limit|too many|limit exceeded|time(?:d )?out|busy|try again|sync|nonce too high"
    r"|header not found|unavailable",
    re.IGNORECASE,
)
_TRANSIENT_CODES = {-32005, -32603, -32601}

_Result = TypeVar("_Result")


class ViewFailed(ChainUnavailable):
    """A contract reverted or answered with something else: it is not what it is taken for."""


class EscrowBackend(ABC):
    """One escrow on one chain. Subclasses add what clients send and how our transactions are made."""

    topics: Mapping[str, EventKind]
    # What a transaction of ours may offer per gas at all, whatever a node says that it costs.
    fee_per_gas_max: int

    def __init__(
        self,
        settings: ChannelSettings,
        mpp: MppSettings,
        *,
        offer: Offer,
        signer: Signer,
        node: Rpc,
        clock: Clock,
        budget: FeeBudget,
    ) -> None:
        self._settings = settings
        self._offer = offer
        self._signer = signer
        self._rpc = node
        self._clock = clock
        self._budget = budget
        self._deposit_max = base_units_down(NanoUsd(parse_usd(mpp.deposit_max)))
        self._log_range_max = mpp.log_range_max
        self._confirm_timeout_s = mpp.confirm_timeout_s
        self._block_seen = 0

    @property
    def offer(self) -> Offer:
        """What challenges say about it."""
        return self._offer

    @property
    def account(self) -> str:
        """The address that signs settlements."""
        return self._signer.address

    async def check(self) -> None:
        """Raises `SettingsError` where chain, token or escrow are not what the settings say."""
        name = f"mpp.channels ({self._offer.backend})"
        chain_id = quantity(await self._rpc.call("eth_chainId"))
        if chain_id != self._offer.chain_id:
            raise SettingsError(f"{name}: chain_id is {self._offer.chain_id}, but the node's is {chain_id}")
        for setting, address in (("escrow", self._offer.escrow), ("currency", self._offer.currency)):
            if not rpc.data(await self._rpc.call("eth_getCode", address, "latest")):
                raise SettingsError(f"{name}: {setting} {address} is no contract on this chain")
        if await self._shown(abi.DECIMALS, to=self._offer.currency) != TOKEN_DECIMALS:
            raise SettingsError(f"{name}: currency must have {TOKEN_DECIMALS} decimals")
        # The escrow must want signed what our vouchers are: its name, its version, this chain and itself.
        domain = self._offer.domain
        digest = await self._shown(abi.voucher_digest(domain.amount_bits), bytes(32), 0, to=self._offer.escrow)
        if digest != signing_hash(domain, channel_id=ZERO_HASH, cumulative_amount=0):
            raise SettingsError(f"{name}: escrow is no {domain.name!r} channel escrow")

    async def broadcast(self, raw: bytes) -> None:
        """Hand a transaction to the node; one that is known or mined already is a success.

        `TransactionRefused` where the node will not have it as it is: it reverts, is expired or unpaid, or its
        nonce is used by another.
        """
        tx_hash = "0x" + keccak(raw).hex()
        try:
            answer = await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except NodeRefused as refusal:
            if _KNOWN.search(refusal.reason) or await self._known(tx_hash):
                return
            if refusal.code in _TRANSIENT_CODES or _TRANSIENT.search(refusal.reason):
                raise
            raise TransactionRefused(f"the chain refused the transaction: {refusal.reason}") from refusal
        if not isinstance(answer, str) or answer.lower() != tx_hash:
            raise ChainUnavailable("the node names another hash for the transaction")

    async def mined(self, tx_hash: str) -> Mined | None:
        """The receipt once it has the configured confirmations; None while it has not."""
        receipt = await self._receipt(tx_hash)
        if receipt is None:
            return None
        block = quantity(receipt.get("blockNumber"))
        if self._settings.confirmations > 1:
            newest = quantity(await self._rpc.call("eth_blockNumber"))
            if newest - block + 1 < self._settings.confirmations:
                return None
        self._block_seen = max(self._block_seen, block)
        return await self._mined_of(receipt, tx_hash=tx_hash, block=block)

    async def wait(self, tx_hash: str, *, timeout_s: float) -> Mined | None:
        """`mined`, waited for. None after ``timeout_s``, also where the node was silent: not a failure."""
        pause_s = POLL_FIRST_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        mined = await self.mined(tx_hash)
                    except ChainUnavailable:
                        mined = None
                    if mined is not None:
                        return mined
                    await asyncio.sleep(pause_s)
                    pause_s = min(POLL_LAST_S, pause_s * 2)
        except TimeoutError:
            return None

    async def channel(self, channel_id: str) -> ChannelState | None:
        """The state at a block no older than any receipt that was seen; None: no sign that it ever was.

        Only ``finalized`` says that a channel is over. A deposit of zero does not, and neither does None.
        """
        return await self._pinned(lambda block: self._state_at(channel_id, block))

    async def next_nonce(self) -> int:
        """The settlement account's next nonce, without transactions still in the pool."""
        return quantity(await self._rpc.call("eth_getTransactionCount", self.account, "latest"))

    async def balance(self) -> BaseUnits:
        """What the settlement account has of the token."""
        (amount,) = await self._view(abi.BALANCE_OF, self.account, to=self._offer.currency)
        return BaseUnits(amount)

    async def head(self) -> Head:
        """The newest block."""
        block = rpc.record(await self._rpc.call("eth_getBlockByNumber", "latest", False))
        return Head(block=quantity(block.get("number")), timestamp=ChainSeconds(quantity(block.get("timestamp"))))

    async def events(self, *, first: int, last: int) -> Sequence[ChannelEvent]:
        """Events of our payee's channels in blocks ``first..last``, in the order of the chain.

        Raises `ChainUnavailable` where the node has not got to ``last``: some would answer with what they have.
        """
        newest = quantity(await self._rpc.call("eth_blockNumber"))
        if newest < last:
            raise ChainUnavailable(f"the node is at block {newest}, behind {last}")
        logs: list[dict[str, Any]] = []
        topics = [list(self.topics), None, None, abi.address_topic(self._offer.recipient)]
        for start in range(first, last + 1, self._log_range_max):
            logs += await self._logs(topics, first=start, last=min(last, start + self._log_range_max - 1))
        return self._events_of(logs, first=first, last=last)

    async def aclose(self) -> None:
        """Give connections back."""
        await self._rpc.aclose()

    @abstractmethod
    async def _state_at(self, channel_id: str, block: int) -> ChannelState | None:
        """A channel's state at one block."""

    @abstractmethod
    async def _mined_of(self, receipt: Mapping[str, Any], *, tx_hash: str, block: int) -> Mined:
        """What a receipt says, with the fee in the chain's own way."""

    async def _receipt(self, tx_hash: str) -> dict[str, Any] | None:
        answer = await self._rpc.call("eth_getTransactionReceipt", tx_hash)
        if answer is None:
            return None
        receipt = rpc.record(answer)
        if str(receipt.get("transactionHash")).lower() != tx_hash:
            raise ChainUnavailable("the node answered with another transaction's receipt")
        # Some nodes show receipts of transactions that are only in their pool.
        return None if receipt.get("blockNumber") is None else receipt

    async def _known(self, tx_hash: str) -> bool:
        found = await self._rpc.call("eth_getTransactionByHash", tx_hash)
        return isinstance(found, dict) and str(found.get("hash")).lower() == tx_hash

    async def _pinned(self, read: Callable[[int], Awaitable[_Result]]) -> _Result:
        trouble = ChainUnavailable("the node is behind")
        for _ in range(LAG_POLLS):
            try:
                block = quantity(await self._rpc.call("eth_blockNumber"))
                if block >= self._block_seen:
                    return await read(block)
                trouble = ChainUnavailable(f"the node is at block {block}, behind {self._block_seen}")
            except NodeRefused as refusal:
                if refusal.reverted:
                    raise
                trouble = refusal
            await asyncio.sleep(LAG_POLL_S)
        raise trouble

    async def _view(
        self, function: abi.Function, *arguments: Any, to: str | None = None, block: int | None = None
    ) -> tuple[Any, ...]:
        call = {"to": to or self._offer.escrow, "data": "0x" + function.call(*arguments).hex()}
        try:
            returned = await self._rpc.call("eth_call", call, "latest" if block is None else hex(block))
            return function.result(rpc.data(returned))
        except ValueError as error:
            raise ViewFailed(str(error)) from error
        except NodeRefused as refusal:
            if not refusal.reverted:
                raise
            raise ViewFailed(f"{function.name} reverted") from refusal

    async def _shown(self, function: abi.Function, *arguments: Any, to: str) -> Any:
        """What a view of one value says; None where the contract has no such view."""
        try:
            (value,) = await self._view(function, *arguments, to=to)
        except ViewFailed:
            return None
        return value

    async def _logs(self, topics: Sequence[Any], *, first: int, last: int) -> list[dict[str, Any]]:
        span = {"fromBlock": hex(first), "toBlock": hex(last), "address": self._offer.escrow, "topics": topics}
        logs = await self._rpc.call("eth_getLogs", span)
        if not isinstance(logs, list) or len(logs) > EVENTS_MAX:
            raise ChainUnavailable("the node answered with something that is no list of events")
        return [rpc.record(log) for log in logs]

    def _events_of(self, logs: Sequence[Mapping[str, Any]], *, first: int, last: int) -> list[ChannelEvent]:
        # Keyed by place, so that an end that emits two events (an expiry and a close) is one.
        found: dict[tuple[int, str, EventKind, str], tuple[int, ChannelEvent]] = {}
        for entry in logs:
            block, topics = quantity(entry.get("blockNumber")), entry.get("topics")
            if not isinstance(topics, list) or len(topics) != 4 or not first <= block <= last:
                raise ChainUnavailable("the node answered with events that nobody asked for")
            kind = self.topics.get(str(topics[0]))
            ours = str(entry.get("address")).lower() == self._offer.escrow
            payee = str(topics[3]).lower() == abi.address_topic(self._offer.recipient)
            if entry.get("removed") is True or kind is None or not ours or not payee:
                continue
            try:
                channel_id, tx_hash = hash_of(topics[1]), hash_of(entry.get("transactionHash"))
            except ValueError as error:
                raise ChainUnavailable("the node answered with an event that cannot be read") from error
            event = ChannelEvent(kind=kind, channel_id=channel_id, block=block, tx_hash=tx_hash)
            key = (block, event.tx_hash, kind, event.channel_id)
            found.setdefault(key, (quantity(entry.get("logIndex")), event))
        return [event for _, event in sorted(found.values(), key=lambda item: (item[1].block, item[0]))]

    async def _fees(self) -> tuple[int, int]:
        """The most we offer per gas, and the tip in it, in the chain's smallest unit.

        Raises `ChainUnavailable` where that is more than is ever paid.
        """
        price = quantity(await self._rpc.call("eth_gasPrice"), bits=128)
        block = rpc.record(await self._rpc.call("eth_getBlockByNumber", "latest", False))
        base = quantity(block.get("baseFeePerGas"), bits=128)
        tip = max(0, price - base)
        if base + tip > self.fee_per_gas_max:
            raise ChainUnavailable(f"the chain asks for {base + tip} per gas, more than is ever paid")
        return min(self.fee_per_gas_max, BASE_FEE_HEADROOM * base + tip), tip

    async def _gas(self, *, to: str, data: bytes) -> int:
        """An estimate with a margin. Raises `TransactionRefused` where the call reverts."""
        call = {"from": self.account, "to": to, "data": "0x" + data.hex()}
        try:
            estimate = quantity(await self._rpc.call("eth_estimateGas", call, "latest"))
        except NodeRefused as refusal:
            if refusal.reverted:
                raise TransactionRefused(f"the call reverts: {refusal.reason}") from refusal
            raise
        if estimate > GAS_MAX:
            raise TransactionRefused(f"the call needs {estimate} gas, more than {GAS_MAX}")
        return min(GAS_MAX, estimate * 5 // 4 + 25_000)

    def _now_s(self) -> int:
        return self._clock.now_ms() // MS_PER_SECOND

    def _check_deposit(self, amount: int) -> BaseUnits:
        if not 0 < amount <= self._deposit_max:
            raise TransactionRefused(f"the deposit must be from 1 to {self._deposit_max} base units")
        return BaseUnits(amount)


def packed_signature(signature: str) -> bytes:
    """A voucher's signature as contracts take it: 65 bytes with a recovery id of 27 or 28, or none."""
    if signature in {"", "0x"}:
        return b""
    canonical = signature_bytes(signature)
    return canonical[:64] + bytes((27 + canonical[64],))
