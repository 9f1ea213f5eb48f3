"""`tempo` channels of protocol v1: a contract escrow, opened by an approval and an open in one transaction.

Source: `draft-tempo-session-00`, "Contract-Backed Channel State".
"""

from collections.abc import Mapping
from typing import Any

from app.chain import abi
from app.chain.backend import Funding, Signed, TransactionRefused
from app.chain.contract import ContractEscrow
from app.chain.tempo import TempoBackend
from app.chain.tempo_transaction import TempoTransaction
from app.money import BaseUnits
from app.mpp.descriptor import Descriptor


class TempoV1(TempoBackend, ContractEscrow):
    """A stream channel contract, our own or somebody else's."""

    async def sign_settle(
        self, *, channel_id: str, descriptor: Descriptor, amount: BaseUnits, signature: str, nonce: int
    ) -> Signed:
        """A settlement of a voucher in full."""
        self._check_descriptor(descriptor, channel_id=channel_id)
        return await self._sign(self._settle_call(channel_id, amount, signature), nonce=nonce)

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
        """A close that captures ``capture`` in all; on a foreign escrow that is ``amount``, or `ValueError`."""
        self._check_descriptor(descriptor, channel_id=channel_id)
        call = self._close_call(channel_id, amount=amount, capture=capture, signature=signature)
        return await self._sign(call, nonce=nonce)

    def _opened(self, payload: Mapping[str, Any], transaction: TempoTransaction) -> tuple[Descriptor, int]:
        approved = self._approved(transaction)
        payee, token, deposit, salt, signer = self._arguments(transaction.calls[1], abi.V1_OPEN, to=self._offer.escrow)
        if payee != self._offer.recipient:
            raise TransactionRefused("the channel's payee is another")
        if token != self._offer.currency:
            raise TransactionRefused("the channel's token is another")
        if approved != deposit:
            raise TransactionRefused("the approval is not for the deposit")
        descriptor = Descriptor(
            payer=transaction.sender, payee=payee, token=token, salt="0x" + salt.hex(), authorized_signer=signer
        )
        return descriptor, deposit

    def _topped_up(
        self, payload: Mapping[str, Any], transaction: TempoTransaction, *, channel_id: str, descriptor: Descriptor
    ) -> int:
        approved = self._approved(transaction)
        call = transaction.calls[1]
        deployed = call.data.startswith(abi.V1_TOP_UP_256.selector)
        function = abi.V1_TOP_UP_256 if deployed else abi.V1_TOP_UP
        named, amount = self._arguments(call, function, to=self._offer.escrow)
        if "0x" + named.hex() != channel_id:
            raise TransactionRefused("the transaction adds to another channel")
        if approved != amount:
            raise TransactionRefused("the approval is not for the additional deposit")
        return int(amount)

    def _approved(self, transaction: TempoTransaction) -> int:
        if len(transaction.calls) != 2:
            raise TransactionRefused("the transaction must be two calls: an approval and the escrow's")
        spender, amount = self._arguments(transaction.calls[0], abi.APPROVE, to=self._offer.currency)
        if spender != self._offer.escrow:
            raise TransactionRefused("the approval is not for the escrow")
        return int(amount)

    async def _fundable(self, funding: Funding) -> bool:
        state = await self.channel(funding.channel_id)
        return state is None if funding.kind == "open" else state is not None and not state.finalized
