"""What both Tempo backends share: clients' signed transactions, sponsored fees, and our own transactions.

A client signs its funding transaction and hands it over; nothing of it reaches a node before it was
found to do exactly what was asked. Fees are paid in the channel's token, in micro-USD.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.chain import abi, rpc, sponsorship, tempo_transaction
from app.chain import payload as fields
from app.chain.backend import Funding, Mined, Signed, TransactionRefused
from app.chain.escrow import EscrowBackend
from app.chain.rpc import NodeRefused, quantity
from app.chain.tempo_transaction import ATTO_PER_BASE_UNIT, Call, TempoTransaction
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor

# Where fees are transferred to: the fee manager's precompile.
FEE_MANAGER = "0xfeec000000000000000000000000000000000000"


class TempoBackend(EscrowBackend):
    """A channel escrow on Tempo, in one of its two protocols."""

    fee_per_gas_max = sponsorship.FEE_PER_GAS_MAX

    def decode_open(self, payload: Mapping[str, Any], *, source: str | None = None) -> Funding:
        """An ``open`` payload, checked against the offer. Raises `TransactionRefused`."""
        fields.require_type(payload, "transaction")
        channel_id = fields.hash_field(payload, "channelId")
        transaction = self._transaction(payload)
        descriptor, deposit = self._opened(payload, transaction)
        signer = fields.optional_address(payload, "authorizedSigner")
        if signer is not None and signer not in {descriptor.authorized_signer, descriptor.signer}:
            raise TransactionRefused("authorizedSigner is not the one in the transaction")
        self._check_source(source, descriptor)
        if channel_id != self._channel_id(descriptor):
            raise TransactionRefused("channelId is not that of the channel which the transaction opens")
        return self._funding(
            transaction, kind="open", channel_id=channel_id, descriptor=descriptor, amount=self._check_deposit(deposit)
        )

    def decode_top_up(
        self, payload: Mapping[str, Any], *, channel_id: str, descriptor: Descriptor, source: str | None = None
    ) -> Funding:
        """A ``topUp`` payload, checked likewise against the channel. Raises `TransactionRefused`."""
        fields.require_type(payload, "transaction")
        self._check_descriptor(descriptor, channel_id=channel_id)
        if fields.hash_field(payload, "channelId") != channel_id:
            raise TransactionRefused("channelId is another channel's")
        transaction = self._transaction(payload)
        if transaction.sender != descriptor.payer:
            raise TransactionRefused("only the channel's payer can add to it")
        self._check_source(source, descriptor)
        amount = self._topped_up(payload, transaction, channel_id=channel_id, descriptor=descriptor)
        if amount != fields.integer_field(payload, "additionalDeposit"):
            raise TransactionRefused("additionalDeposit is not what the transaction adds")
        return self._funding(
            transaction, kind="topUp", channel_id=channel_id, descriptor=descriptor, amount=self._check_deposit(amount)
        )

    async def prepare(self, funding: Funding, *, nonce: int | None = None) -> Funding:
        """Our signature for the fees of a sponsored transaction; any other is final as it is.

        Doing it twice gives the same transaction and one reservation.
        """
        if not funding.sponsored or funding.raw is None:
            return funding
        transaction = tempo_transaction.decode(funding.raw)
        if transaction.fee_payer_signature is not None:
            return funding
        signed = transaction.sponsored(self._signer, fee_token=self._offer.currency)
        if await self._receipt(signed.tx_hash) is None:
            # Time has passed since it was decoded.
            self._check_sponsored(transaction)
            await self._rehearse(funding, transaction)
            if not await self._budget.reserve(signed.fee_max, tx_hash=signed.tx_hash):
                raise TransactionRefused("the budget for sponsored fees is used up for now; pay the fees yourself")
        return funding.with_transaction(signed.raw, signed.tx_hash)

    @abstractmethod
    def _opened(self, payload: Mapping[str, Any], transaction: TempoTransaction) -> tuple[Descriptor, int]:
        """Which channel a transaction opens, and with what deposit. Raises `TransactionRefused`."""

    @abstractmethod
    def _topped_up(
        self, payload: Mapping[str, Any], transaction: TempoTransaction, *, channel_id: str, descriptor: Descriptor
    ) -> int:
        """What a transaction adds to a channel. Raises `TransactionRefused`."""

    @abstractmethod
    async def _fundable(self, funding: Funding) -> bool:
        """Whether the channel is not there yet, or for a top-up there and not over."""

    def _transaction(self, payload: Mapping[str, Any]) -> TempoTransaction:
        transaction = tempo_transaction.parse(payload.get("transaction"))
        if transaction.chain_id != self._offer.chain_id:
            raise TransactionRefused(f"the transaction is for chain {transaction.chain_id}")
        if any(call.value for call in transaction.calls):
            raise TransactionRefused("the transaction's calls carry native value")
        now_s = self._now_s()
        if transaction.valid_before is not None and transaction.valid_before <= now_s:
            raise TransactionRefused("the transaction has expired")
        if transaction.valid_after is not None and transaction.valid_after > now_s:
            raise TransactionRefused("the transaction is not valid yet")
        if transaction.awaits_fee_payer:
            if not self._offer.fee_payer:
                raise TransactionRefused("fees are not sponsored here; sign a transaction that pays its own")
            self._check_sponsored(transaction)
        return transaction

    def _check_sponsored(self, transaction: TempoTransaction) -> None:
        sponsorship.check(
            transaction, chain_id=self._offer.chain_id, fee_token=self._offer.currency, now_s=self._now_s()
        )

    def _check_source(self, source: str | None, descriptor: Descriptor) -> None:
        if source is None:
            return
        if fields.source_address(source, chain_id=self._offer.chain_id) != descriptor.payer:
            raise TransactionRefused("source is not the transaction's sender")

    def _check_descriptor(self, descriptor: Descriptor, *, channel_id: str) -> None:
        ours = (self._offer.recipient, self._offer.currency, self._offer.operator or ZERO_ADDRESS)
        if (descriptor.payee, descriptor.token, descriptor.operator) != ours:
            raise TransactionRefused("the channel is not with this payee in this token")
        if self._channel_id(descriptor) != channel_id:
            raise TransactionRefused("the descriptor is another channel's")

    def _channel_id(self, descriptor: Descriptor) -> str:
        return descriptor.channel_id(
            protocol=self._offer.protocol, escrow=self._offer.escrow, chain_id=self._offer.chain_id
        )

    def _arguments(self, call: Call, function: abi.Function, *, to: str) -> tuple[Any, ...]:
        if call.to != to:
            raise TransactionRefused(f"{function.name} must be a call of {to}")
        try:
            return function.arguments(call.data)
        except ValueError as error:
            raise TransactionRefused(str(error)) from error

    def _funding(
        self,
        transaction: TempoTransaction,
        *,
        kind: Literal["open", "topUp"],
        channel_id: str,
        descriptor: Descriptor,
        amount: BaseUnits,
    ) -> Funding:
        # Sponsored, its hash is not known before our signature is in it.
        sponsored = transaction.awaits_fee_payer
        return Funding(
            kind=kind,
            channel_id=channel_id,
            descriptor=descriptor,
            amount=amount,
            tx_hash=None if sponsored else transaction.tx_hash,
            raw=transaction.raw,
            sponsored=sponsored,
        )

    async def _rehearse(self, funding: Funding, transaction: TempoTransaction) -> None:
        """We would pay for a revert as for a success, so what can be known before is asked."""
        if not await self._fundable(funding):
            opens = funding.kind == "open"
            raise TransactionRefused("the channel is open already" if opens else "there is no such open channel")
        (balance,) = await self._view(abi.BALANCE_OF, transaction.sender, to=self._offer.currency)
        if balance < funding.amount:
            raise TransactionRefused("the payer has less than the deposit")
        calls = [{"to": call.to, "data": "0x" + call.data.hex(), "value": "0x0"} for call in transaction.calls]
        rehearsal = {"from": transaction.sender, "gas": hex(transaction.gas), "calls": calls}
        try:
            await self._rpc.call("eth_call", rehearsal, "latest")
        except NodeRefused as refusal:
            if refusal.reverted:
                raise TransactionRefused(f"the transaction would revert: {refusal.reason}") from refusal
            raise

    async def _sign(self, data: bytes, *, nonce: int) -> Signed:
        """A call of the escrow by the settlement account."""
        max_fee, tip = await self._fees()
        transaction = tempo_transaction.sign(
            self._signer,
            chain_id=self._offer.chain_id,
            nonce=nonce,
            calls=(Call(to=self._offer.escrow, data=data),),
            gas=await self._gas(to=self._offer.escrow, data=data),
            max_fee_per_gas=max_fee,
            max_priority_fee_per_gas=tip,
            fee_token=self._offer.currency,
        )
        return Signed(raw=transaction.raw, tx_hash=transaction.tx_hash, nonce=nonce)

    async def _mined_of(self, receipt: Mapping[str, Any], *, tx_hash: str, block: int) -> Mined:
        spent = quantity(receipt.get("gasUsed")) * quantity(receipt.get("effectiveGasPrice"), bits=128)
        fee = BaseUnits(-(-spent // ATTO_PER_BASE_UNIT))
        if self._sponsored_by_us(receipt):
            await self._budget.settle(fee, tx_hash=tx_hash)
        return Mined(tx_hash=tx_hash, succeeded=quantity(receipt.get("status")) == 1, block=block, fee=fee)

    def _sponsored_by_us(self, receipt: Mapping[str, Any]) -> bool:
        """From the receipt alone, so that it holds after a restart. Nodes of older versions name the sender as
        its own fee payer; the transfer of the fee does not."""
        if str(receipt.get("from")).lower() == self.account:
            return False
        if str(receipt.get("feePayer")).lower() == self.account:
            return True
        logs = receipt.get("logs")
        fee = [abi.TRANSFER_TOPIC, abi.address_topic(self.account), abi.address_topic(FEE_MANAGER)]
        entries: Sequence[Any] = logs if isinstance(logs, list) else ()
        return any(rpc.record(entry).get("topics") == fee for entry in entries)
