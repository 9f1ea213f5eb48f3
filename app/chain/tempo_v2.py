"""`tempo` channels of protocol v2: the TIP-20 channel reserve, a precompile that takes descriptors.

Source: `draft-tempo-session-00`, "Precompile-Backed Channel State". The reserve forgets a channel when it
ends, and the hash in its id makes every open a new one.
"""

from collections.abc import Mapping
from typing import Any

from app.chain import abi
from app.chain import payload as fields
from app.chain.abi import descriptor_of, descriptor_tuple
from app.chain.backend import ChainSeconds, ChannelState, Funding, Signed, TransactionRefused
from app.chain.escrow import packed_signature
from app.chain.rpc import data
from app.chain.tempo import TempoBackend
from app.chain.tempo_transaction import EXPIRING_NONCE_KEY, TempoTransaction
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor

# How far back the end of a channel is looked for, in ranges of `mpp.log_range_max` blocks.
EVIDENCE_RANGES_MAX = 10


class TempoV2(TempoBackend):
    """The reserve precompile."""

    topics = abi.V2_TOPICS

    async def sign_settle(
        self, *, channel_id: str, descriptor: Descriptor, amount: BaseUnits, signature: str, nonce: int
    ) -> Signed:
        """A settlement of a voucher in full."""
        self._check_descriptor(descriptor, channel_id=channel_id)
        call = abi.V2_SETTLE.call(descriptor_tuple(descriptor), amount, packed_signature(signature))
        return await self._sign(call, nonce=nonce)

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
        """A close that captures ``capture`` in all and shows a voucher of ``amount``."""
        self._check_descriptor(descriptor, channel_id=channel_id)
        call = abi.V2_CLOSE.call(descriptor_tuple(descriptor), amount, capture, packed_signature(signature))
        return await self._sign(call, nonce=nonce)

    def _opened(self, payload: Mapping[str, Any], transaction: TempoTransaction) -> tuple[Descriptor, int]:
        if len(transaction.calls) != 1:
            raise TransactionRefused("the transaction must be one call, which opens the channel")
        payee, operator, token, deposit, salt, signer = self._arguments(
            transaction.calls[0], abi.V2_OPEN, to=self._offer.escrow
        )
        if payee != self._offer.recipient:
            raise TransactionRefused("the channel's payee is another")
        if token != self._offer.currency:
            raise TransactionRefused("the channel's token is another")
        if operator != (self._offer.operator or ZERO_ADDRESS):
            raise TransactionRefused("the channel's operator is another")
        # The chain puts this hash into the channel's id, which is only unique where the nonce expires.
        if transaction.nonce_key != EXPIRING_NONCE_KEY:
            raise TransactionRefused("a channel is opened with an expiring nonce")
        descriptor = Descriptor(
            payer=transaction.sender,
            payee=payee,
            token=token,
            salt="0x" + salt.hex(),
            authorized_signer=signer,
            operator=operator,
            expiring_nonce_hash=transaction.expiring_nonce_hash,
        )
        if fields.descriptor_field(payload) != descriptor:
            raise TransactionRefused("descriptor is not that of the channel which the transaction opens")
        return descriptor, deposit

    def _topped_up(
        self, payload: Mapping[str, Any], transaction: TempoTransaction, *, channel_id: str, descriptor: Descriptor
    ) -> int:
        if len(transaction.calls) != 1:
            raise TransactionRefused("the transaction must be one call, which adds to the channel")
        named, amount = self._arguments(transaction.calls[0], abi.V2_TOP_UP, to=self._offer.escrow)
        if descriptor_of(named) != descriptor:
            raise TransactionRefused("the transaction adds to another channel")
        if payload.get("descriptor") is not None and fields.descriptor_field(payload) != descriptor:
            raise TransactionRefused("descriptor is another channel's")
        return int(amount)

    async def _fundable(self, funding: Funding) -> bool:
        # An ended channel's id cannot come again, so its end need not be looked for.
        identity = bytes.fromhex(funding.channel_id[2:])
        _, deposit, _ = await self._pinned(lambda block: self._view(abi.V2_GET_CHANNEL_STATE, identity, block=block))
        return bool(deposit) == (funding.kind == "topUp")

    async def _state_at(self, channel_id: str, block: int) -> ChannelState | None:
        settled, deposit, requested_at = await self._view(
            abi.V2_GET_CHANNEL_STATE, bytes.fromhex(channel_id[2:]), block=block
        )
        if deposit == 0:
            return await self._ended(channel_id, block)
        return ChannelState(
            deposit=BaseUnits(deposit),
            settled=BaseUnits(settled),
            close_requested_at=ChainSeconds(requested_at),
            finalized=False,
            block=block,
        )

    async def _ended(self, channel_id: str, block: int) -> ChannelState | None:
        """The reserve has nothing under this id: it ended if there is the event that says so. An empty state
        alone proves nothing, as it is also what a node shows that has not seen the channel open."""
        last = block
        for _ in range(EVIDENCE_RANGES_MAX):
            first = max(0, last - self._log_range_max + 1)
            for entry in await self._logs([abi.V2_CLOSED_TOPIC, channel_id], first=first, last=last):
                amounts = data(entry.get("data"))
                settled, refunded = int.from_bytes(amounts[:32], "big"), int.from_bytes(amounts[32:64], "big")
                return ChannelState(
                    deposit=BaseUnits(settled + refunded),
                    settled=BaseUnits(settled),
                    close_requested_at=ChainSeconds(0),
                    finalized=True,
                    block=block,
                )
            if first == 0:
                return None
            last = first - 1
        return None
