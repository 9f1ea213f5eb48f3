"""The v1 contract escrow as the `tempo` and `evm` backends both read it and call it."""

from app.chain import abi
from app.chain.backend import ChainSeconds, ChannelState
from app.chain.escrow import EscrowBackend, packed_signature
from app.chain.rpc import NodeRefused
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS, ZERO_HASH
from app.settings import SettingsError


class ContractEscrow(EscrowBackend):
    """Channels that a contract keeps for ever, finalized or not."""

    topics = abi.V1_TOPICS

    async def check(self) -> None:
        """As of every backend, and that our own escrow can capture less than a voucher."""
        await super().check()
        probe = abi.V1_CLOSE_WITH_CAPTURE.call(bytes.fromhex(ZERO_HASH[2:]), 0, 0, b"")
        if self._offer.captures_less and not await self._answers(probe, to=self._offer.escrow):
            raise SettingsError(
                f"mpp.channels ({self._offer.backend}): escrow cannot close for less than a voucher (closeWithCapture)"
            )

    async def _answers(self, call: bytes, *, to: str) -> bool:
        """Whether a contract has a function, by a call that must revert: one that has it says why, one that
        does not says nothing."""
        try:
            await self._rpc.call("eth_call", {"to": to, "data": "0x" + call.hex()}, "latest")
        except NodeRefused as refusal:
            if not refusal.reverted:
                raise
            return bool(refusal.data)
        return False

    async def _state_at(self, channel_id: str, block: int) -> ChannelState | None:
        finalized, requested_at, payer, payee, token, _, deposit, settled = await self._view(
            abi.V1_GET_CHANNEL, bytes.fromhex(channel_id[2:]), block=block
        )
        if payer == ZERO_ADDRESS or (payee, token) != (self._offer.recipient, self._offer.currency):
            return None
        # Some deployed escrows empty the deposit before they set the flag: only the flag says that it is over.
        return ChannelState(
            deposit=BaseUnits(deposit),
            settled=BaseUnits(settled),
            close_requested_at=ChainSeconds(requested_at),
            finalized=finalized,
            block=block,
        )

    def _settle_call(self, channel_id: str, amount: BaseUnits, signature: str) -> bytes:
        return abi.V1_SETTLE.call(bytes.fromhex(channel_id[2:]), amount, packed_signature(signature))

    def _close_call(self, channel_id: str, *, amount: BaseUnits, capture: BaseUnits, signature: str) -> bytes:
        identity, packed = bytes.fromhex(channel_id[2:]), packed_signature(signature)
        if self._offer.captures_less:
            return abi.V1_CLOSE_WITH_CAPTURE.call(identity, amount, capture, packed)
        if capture != amount:
            raise ValueError("this escrow's close pays the whole voucher: capture must equal amount")
        return abi.V1_CLOSE.call(identity, amount, packed)
