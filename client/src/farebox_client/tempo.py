"""Transactions of Tempo: opens, top-ups, and the payer's way out.

Source: `draft-tempo-session-00`, "Contract Functions", "Fee Payment" and "Channel Descriptor"; TIP-1009 for
expiring nonces, TIP-1034 for the channel reserve.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

from farebox_client.channel import Parts
from farebox_client.flow import Flow
from farebox_client.hexadecimal import raw
from farebox_client.limits import Limits
from farebox_client.node import DESCRIPTOR_TUPLE, Node, call_data, descriptor_values

# TIP-1009: this key makes a nonce that expires, so independent transactions never wait for each other.
EXPIRING_NONCE_KEY = 2**256 - 1
# TIP-1009 allows 30 seconds; what is left is for clocks that differ.
VALID_S = 25
# Sponsors refuse more than two million, and an approval with an open on fresh storage needs most of it. Unused
# gas is not paid for.
GAS_LIMIT = 1_900_000
# Two top-ups of one amount in one second would be one transaction, byte for byte, and add once: each names
# a gas limit of its own, up to this much higher.
GAS_LIMIT_SPREAD = 65_536
ATTO_PER_BASE_UNIT = 10**12


def fee(gas_price: int) -> int:
    """The most that a transaction costs at a gas price, in base units of the fee token, rounded up."""
    return -(-(GAS_LIMIT + GAS_LIMIT_SPREAD) * gas_price // ATTO_PER_BASE_UNIT)


class TempoChain:
    """Builds and signs transactions of one payer on one Tempo chain."""

    def __init__(self, node: Node, account: LocalAccount, limits: Limits) -> None:
        self._node = node
        self._account = account
        self._limits = limits

    def open(self, parts: Parts, *, deposit: int, fee_payer: bool, now: int) -> Flow[tuple[Parts, dict[str, Any], int]]:
        """The channel's final parts, the members of an ``open`` payload, and until when it can be mined.

        ``now`` in Unix seconds. Raises `LimitReached`, `InsufficientFunds` and `ChainError`.
        """
        reserve = parts.kind == "tempo-v2"
        if reserve:
            data = call_data(
                "open(address,address,address,uint96,bytes32,address)",
                *(parts.payee, parts.operator, parts.token, deposit, raw(parts.salt), parts.authorized_signer),
            )
            calls = [Call.create(to=parts.escrow, data=data)]
        else:
            data = call_data(
                "open(address,address,uint128,bytes32,address)",
                *(parts.payee, parts.token, deposit, raw(parts.salt), parts.authorized_signer),
            )
            calls = [_approve(parts, deposit), Call.create(to=parts.escrow, data=data)]
        signed, encoded = yield from self._sign(parts, calls, deposit=deposit, fee_payer=fee_payer, now=now)
        if reserve:
            sender = raw(parts.payer)
            parts = replace(parts, expiring_nonce_hash="0x" + keccak(signed.encode_for_signing() + sender).hex())
        return parts, {"type": "transaction", "transaction": encoded}, now + VALID_S

    def top_up(self, parts: Parts, *, amount: int, fee_payer: bool, now: int) -> Flow[dict[str, Any]]:
        """The members of a ``topUp`` payload that adds ``amount`` base units. Raises like `open`."""
        if parts.kind == "tempo-v2":
            data = call_data(f"topUp({DESCRIPTOR_TUPLE},uint96)", descriptor_values(parts), amount)
            calls = [Call.create(to=parts.escrow, data=data)]
        else:
            # The deployed contract differs from the draft, which has a uint128 here.
            data = call_data("topUp(bytes32,uint256)", raw(parts.channel_id), amount)
            calls = [_approve(parts, amount), Call.create(to=parts.escrow, data=data)]
        _, encoded = yield from self._sign(parts, calls, deposit=amount, fee_payer=fee_payer, now=now)
        return {"type": "transaction", "transaction": encoded, "additionalDeposit": str(amount)}

    def leave(self, parts: Parts, *, function: str, now: int) -> Flow[str]:
        """Broadcast ``requestClose`` or ``withdraw`` and wait for it: the transaction's hash."""
        if parts.kind == "tempo-v2":
            data = call_data(f"{function}({DESCRIPTOR_TUPLE})", descriptor_values(parts))
        else:
            data = call_data(f"{function}(bytes32)", raw(parts.channel_id))
        calls = [Call.create(to=parts.escrow, data=data)]
        _, encoded = yield from self._sign(parts, calls, deposit=0, fee_payer=False, now=now)
        tx_hash = yield from self._node.request("eth_sendRawTransaction", [encoded])
        return (yield from self._node.wait_mined(str(tx_hash), what=function)).tx_hash

    def _sign(
        self, parts: Parts, calls: Sequence[Call], *, deposit: int, fee_payer: bool, now: int
    ) -> Flow[tuple[TempoTransaction, str]]:
        yield from self._node.check_chain()
        gas_price = yield from self._node.number("eth_gasPrice")
        # A fifth more, for a base fee that rises before the transaction is mined.
        gas_price += gas_price // 5
        cost = 0 if fee_payer else fee(gas_price)
        self._limits.check_fee(cost)
        yield from self._node.check_token(parts.token, holder=parts.payer, needed=deposit + cost)
        transaction = TempoTransaction.create(
            chain_id=parts.chain_id,
            gas_limit=GAS_LIMIT + secrets.randbelow(GAS_LIMIT_SPREAD),
            max_fee_per_gas=gas_price,
            max_priority_fee_per_gas=0,
            nonce_key=EXPIRING_NONCE_KEY,
            nonce=0,
            valid_before=now + VALID_S,
            fee_token=None if fee_payer else parts.token,
            awaiting_fee_payer=fee_payer,
            calls=tuple(calls),
        )
        signed = transaction.sign(self._account.key.hex())
        if not fee_payer:
            return signed, "0x" + signed.encode().hex()
        # Heavy to import, and needed by sponsored transactions alone.
        from mpp.methods.tempo.fee_payer_envelope import encode_fee_payer_envelope

        return signed, "0x" + encode_fee_payer_envelope(signed).hex()


def _approve(parts: Parts, amount: int) -> Call:
    return Call.create(to=parts.token, data=call_data("approve(address,uint256)", parts.escrow, amount))
