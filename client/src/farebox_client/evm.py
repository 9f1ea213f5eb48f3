"""Transactions of other EVM chains: the payer broadcasts them itself, or signs an EIP-3009 authorization.

Source: `draft-evm-session-00`, "Contract Functions", "Open Payload" and "TopUp Payload"; EIP-1559, EIP-3009.
"""

import secrets
from typing import Any

from eth_abi.abi import encode
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from farebox_client.channel import Parts
from farebox_client.errors import ChainError, InsufficientFunds
from farebox_client.flow import Flow
from farebox_client.hexadecimal import raw
from farebox_client.limits import Limits
from farebox_client.node import Node, call_data

# How long an authorization can be used: time for the server's transaction to be mined.
AUTHORIZATION_S = 600
# An estimate is for the state of now; a quarter more is for that of the block.
GAS_MARGIN = 4


class EvmChain:
    """Builds, signs and broadcasts transactions of one payer on one EVM chain.

    Whoever calls holds the claim on the payer's nonces. Every method may raise `LimitReached`,
    `InsufficientFunds` and `ChainError`.
    """

    def __init__(self, node: Node, account: LocalAccount, limits: Limits) -> None:
        self._node = node
        self._account = account
        self._limits = limits

    def approve(self, parts: Parts, amount: int) -> Flow[None]:
        """Let the escrow take ``amount``, if it may not already, and wait until it may."""
        yield from self._node.check_chain()
        yield from self._node.check_token(parts.token, holder=parts.payer, needed=amount)
        data = call_data("allowance(address,address)", parts.payer, parts.escrow)
        (allowed,) = yield from self._node.call(parts.token, data, ["uint256"])
        if allowed < amount:
            data = call_data("approve(address,uint256)", parts.escrow, amount)
            encoded, tx_hash = yield from self.sign(parts, parts.token, data)
            yield from self.broadcast(encoded, tx_hash, what="approve")

    def sign_open(self, parts: Parts, deposit: int) -> Flow[tuple[str, str]]:
        """An ``open`` after `approve`: the raw transaction and its hash."""
        data = call_data(
            "open(address,address,uint128,bytes32,address)",
            *(parts.payee, parts.token, deposit, raw(parts.salt), parts.authorized_signer),
        )
        return (yield from self.sign(parts, parts.escrow, data))

    def sign_top_up(self, parts: Parts, amount: int) -> Flow[tuple[str, str]]:
        """A ``topUp`` after `approve`: the raw transaction and its hash."""
        data = call_data("topUp(bytes32,uint128)", raw(parts.channel_id), amount)
        return (yield from self.sign(parts, parts.escrow, data))

    def leave(self, parts: Parts, *, function: str) -> Flow[str]:
        """Broadcast ``requestClose`` or ``withdraw`` and wait for it: the transaction's hash."""
        data = call_data(f"{function}(bytes32)", raw(parts.channel_id))
        encoded, tx_hash = yield from self.sign(parts, parts.escrow, data)
        yield from self.broadcast(encoded, tx_hash, what=function)
        return tx_hash

    def sign(self, parts: Parts, to: str, data: bytes) -> Flow[tuple[str, str]]:
        """A transaction with the payer's next nonce: raw, and its hash."""
        yield from self._node.check_chain()
        call = {"from": parts.payer, "to": to, "data": "0x" + data.hex()}
        gas = yield from self._node.number("eth_estimateGas", call)
        gas += gas // GAS_MARGIN
        gas_price = yield from self._node.number("eth_gasPrice")
        # Room for two blocks of rising base fees; what is not needed is not paid.
        price_max = 2 * gas_price
        self._limits.check_fee_native(gas * price_max)
        balance = yield from self._node.number("eth_getBalance", parts.payer, "latest")
        if balance < gas * price_max:
            raise InsufficientFunds(
                f"wallet {parts.payer} holds {balance} wei on chain {parts.chain_id}, "
                f"and the fee may come to {gas * price_max}"
            )
        nonce = yield from self._node.number("eth_getTransactionCount", parts.payer, "pending")
        priority = yield from self._node.number("eth_maxPriorityFeePerGas")
        signed = self._account.sign_transaction(
            {
                "type": 2,
                "chainId": parts.chain_id,
                "nonce": nonce,
                "to": to_checksum_address(to),
                "value": 0,
                "data": data,
                "gas": gas,
                "maxFeePerGas": price_max,
                "maxPriorityFeePerGas": min(priority, price_max),
            }
        )
        return "0x" + signed.raw_transaction.hex(), "0x" + signed.hash.hex()

    def broadcast(self, encoded: str, tx_hash: str, *, what: str) -> Flow[None]:
        """Hand a transaction to the node and wait until it is mined."""
        yield from self._node.request("eth_sendRawTransaction", [encoded])
        yield from self._node.wait_mined(tx_hash, what=what)

    def authorize_open(self, parts: Parts, *, deposit: int, now: int) -> Flow[dict[str, Any]]:
        """The members of an ``open`` by EIP-3009, without the voucher. ``now`` in Unix seconds."""
        # The nonce binds the authorization to this channel: "Front-Running Protection".
        types = ("address", "address", "address", "bytes32", "address")
        values = (parts.payer, parts.payee, parts.token, raw(parts.salt), parts.authorized_signer)
        return (yield from self._authorize(parts, keccak(encode(types, values)), amount=deposit, now=now))

    def authorize_top_up(self, parts: Parts, *, amount: int, now: int) -> Flow[dict[str, Any]]:
        """The members of a ``topUp`` by EIP-3009."""
        salt = secrets.token_bytes(32)
        types = ("bytes32", "uint128", "address", "bytes32")
        nonce = keccak(encode(types, (raw(parts.channel_id), amount, parts.payer, salt)))
        members = yield from self._authorize(parts, nonce, amount=amount, now=now)
        return {**members, "salt": "0x" + salt.hex(), "additionalDeposit": str(amount)}

    def _authorize(self, parts: Parts, nonce: bytes, *, amount: int, now: int) -> Flow[dict[str, Any]]:
        yield from self._node.check_chain()
        yield from self._node.check_token(parts.token, holder=parts.payer, needed=amount)
        domain = yield from self._token_domain(parts)
        message = {
            "from": to_checksum_address(parts.payer),
            "to": to_checksum_address(parts.escrow),
            "value": amount,
            "validAfter": 0,
            "validBefore": now + AUTHORIZATION_S,
            "nonce": nonce,
        }
        members = ("from:address", "to:address", "value:uint256", "validAfter:uint256", "validBefore:uint256")
        types = [dict(zip(("name", "type"), each.split(":"), strict=True)) for each in (*members, "nonce:bytes32")]
        signable = encode_typed_data(domain, {"ReceiveWithAuthorization": types}, message)
        signature = self._account.sign_message(signable).signature
        return {
            "type": "authorization",
            "authorization": {
                "from": parts.payer,
                "to": parts.escrow,
                "value": str(amount),
                "validAfter": "0",
                "validBefore": str(now + AUTHORIZATION_S),
                "nonce": "0x" + nonce.hex(),
            },
            "signature": "0x" + signature.hex(),
        }

    def _token_domain(self, parts: Parts) -> Flow[dict[str, Any]]:
        """A token's EIP-712 domain, proved against what the token itself computes."""
        (name,) = yield from self._node.call(parts.token, call_data("name()"), ["string"])
        (version,) = yield from self._node.call(parts.token, call_data("version()"), ["string"])
        (separator,) = yield from self._node.call(parts.token, call_data("DOMAIN_SEPARATOR()"), ["bytes32"])
        domain = {
            "name": name,
            "version": version,
            "chainId": parts.chain_id,
            "verifyingContract": to_checksum_address(parts.token),
        }
        kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
        hashes = (kind, keccak(text=name), keccak(text=version), parts.chain_id, parts.token)
        if keccak(encode(("bytes32", "bytes32", "bytes32", "uint256", "address"), hashes)) != separator:
            raise ChainError(f"token {parts.token} signs authorizations in an unknown way: use another way to open")
        return domain
