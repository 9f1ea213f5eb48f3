"""One-shot payments: `tempo` credentials of intent `charge`, verified, broadcast and waited for.

Source: `draft-tempo-charge-00`. The transfer must carry the memo that binds it to its challenge (the
format is `mpp.methods.tempo.attribution`'s): without it, anybody could present a transfer that somebody else
made. A hash is claimed durably before anything is broadcast, so a crash at any point leaves a payment
that its payer can present again, and that is credited once.

`pympp` verifies charges too, but with connections, clocks and a store of its own, whose claims it takes
back when a node fails; here a claim is for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.chain import abi, rpc, tempo_transaction
from app.chain import payload as fields
from app.chain.backend import ChannelBackend, Mined, TransactionRefused
from app.chain.rpc import Rpc
from app.chain.tempo_transaction import TempoTransaction
from app.clock import MS_PER_SECOND, Clock
from app.money import BaseUnits

MEMO_BYTES = 32


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """What our challenge asked for: lowercase hexadecimal, ``amount`` in base units of ``currency``."""

    challenge_id: str
    realm: str
    currency: str
    recipient: str
    amount: BaseUnits


@dataclass(frozen=True, slots=True)
class Charged:
    """A payment that is on chain: who paid, by which transaction."""

    payer: str
    tx_hash: str
    amount: BaseUnits


class ChargeClaims(Protocol):
    """Which transaction pays which challenge, for ever."""

    async def claim(self, tx_hash: str, *, challenge_id: str, payer: str, amount: BaseUnits) -> bool:
        """Durably give a transaction to a challenge. True also where it has it already; False where it has another."""
        ...


class TempoCharge:
    """Charges on the chain of a Tempo backend. It owns its connection to the node, and the backend its own."""

    def __init__(self, backend: ChannelBackend, *, node: Rpc, claims: ChargeClaims, clock: Clock) -> None:
        self._backend = backend
        self._rpc = node
        self._claims = claims
        self._clock = clock

    async def aclose(self) -> None:
        """Give connections back."""
        await self._rpc.aclose()

    async def collect(
        self, payload: Mapping[str, Any], request: ChargeRequest, *, source: str | None, timeout_s: float
    ) -> Charged | None:
        """See a credential's payment through. None where it was not mined within ``timeout_s``: not a failure,
        and the same credential may be presented again.

        Idempotent: the same credential gives the same result, which is to be credited by its ``tx_hash``.
        Raises `TransactionRefused` and `ChainUnavailable`.
        """
        if fields.require_type(payload, "transaction", "hash") == "hash":
            return await self._pushed(payload, request, source=source, timeout_s=timeout_s)
        transaction = self._decoded(payload, request, source=source)
        tx_hash, payer = transaction.tx_hash, transaction.sender
        await self._claim(tx_hash, request, payer=payer)
        await self._backend.broadcast(transaction.raw)
        mined = await self._backend.wait(tx_hash, timeout_s=timeout_s)
        return None if mined is None else self._charged(mined, request, payer=payer)

    async def _pushed(
        self, payload: Mapping[str, Any], request: ChargeRequest, *, source: str | None, timeout_s: float
    ) -> Charged | None:
        """The client broadcast it: what counts is the token's event."""
        tx_hash = fields.hash_field(payload, "hash")
        expected = None if source is None else fields.source_address(source, chain_id=self._backend.offer.chain_id)
        mined = await self._backend.wait(tx_hash, timeout_s=timeout_s)
        if mined is None:
            return None
        receipt = rpc.record(await self._rpc.call("eth_getTransactionReceipt", tx_hash))
        payer = self._payer_of(receipt, request)
        if expected is not None and payer != expected:
            raise TransactionRefused("source is not who paid")
        charged = self._charged(mined, request, payer=payer)
        await self._claim(tx_hash, request, payer=payer)
        return charged

    def _decoded(self, payload: Mapping[str, Any], request: ChargeRequest, *, source: str | None) -> TempoTransaction:
        transaction, chain_id = tempo_transaction.parse(payload.get("signature")), self._backend.offer.chain_id
        if transaction.chain_id != chain_id:
            raise TransactionRefused(f"the transaction is for chain {transaction.chain_id}")
        if transaction.awaits_fee_payer:
            raise TransactionRefused("fees of charges are not sponsored; sign a transaction that pays its own")
        now_s = self._clock.now_ms() // MS_PER_SECOND
        if transaction.valid_before is not None and transaction.valid_before <= now_s:
            raise TransactionRefused("the transaction has expired")
        if transaction.valid_after is not None and transaction.valid_after > now_s:
            raise TransactionRefused("the transaction is not valid yet")
        if len(transaction.calls) != 1 or transaction.calls[0].to != request.currency or transaction.calls[0].value:
            raise TransactionRefused("the transaction must be one call, a transfer of the currency asked for")
        try:
            recipient, amount, memo = abi.TRANSFER_WITH_MEMO.arguments(transaction.calls[0].data)
        except ValueError as error:
            raise TransactionRefused(str(error)) from error
        if recipient != request.recipient or amount != request.amount:
            raise TransactionRefused("the transfer is not to the recipient, or not of the amount, asked for")
        _check_memo("0x" + memo.hex(), request)
        if source is not None and fields.source_address(source, chain_id=chain_id) != transaction.sender:
            raise TransactionRefused("source is not the transaction's sender")
        return transaction

    def _payer_of(self, receipt: Mapping[str, Any], request: ChargeRequest) -> str:
        logs = receipt.get("logs")
        for entry in logs if isinstance(logs, list) else ():
            log = rpc.record(entry)
            topics = log.get("topics")
            if str(log.get("address")).lower() != request.currency or not isinstance(topics, list):
                continue
            if len(topics) != 4 or topics[0] != abi.TRANSFER_WITH_MEMO_TOPIC:
                continue
            amount = int.from_bytes(rpc.data(log.get("data"))[:MEMO_BYTES], "big")
            if str(topics[2]).lower() == abi.address_topic(request.recipient) and amount == request.amount:
                _check_memo(str(topics[3]), request)
                return "0x" + str(topics[1]).lower()[-40:]
        raise TransactionRefused("the transaction holds no such transfer")

    async def _claim(self, tx_hash: str, request: ChargeRequest, *, payer: str) -> None:
        if not await self._claims.claim(tx_hash, challenge_id=request.challenge_id, payer=payer, amount=request.amount):
            raise TransactionRefused("the transaction has paid for something else")

    def _charged(self, mined: Mined, request: ChargeRequest, *, payer: str) -> Charged:
        if not mined.succeeded:
            raise TransactionRefused("the transaction reverted")
        return Charged(payer=payer, tx_hash=mined.tx_hash, amount=request.amount)


def _check_memo(memo: str, request: ChargeRequest) -> None:
    # Imported here: the first charge may wait for it, the start of the server need not.
    from mpp.methods.tempo import attribution

    if not attribution.verify_server(memo, request.realm) or not attribution.verify_challenge_binding(
        memo, request.challenge_id
    ):
        raise TransactionRefused("the transfer's memo does not bind it to this challenge")
