"""The escrow on a node with its token, a payer, a payee and strangers."""

from dataclasses import dataclass
from itertools import count
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from tests.contracts.node import Contract, Node
from tests.contracts.vouchers import ZERO, Domain, sign
from tests.devnet_fixtures import EvmChain

GRACE_S = 15 * 60
DEPOSIT = 1_000_000
NAME = "EVM Payment Channel"
EVER = 2**48


@dataclass(frozen=True, slots=True)
class Record:
    """A channel as the contract keeps it."""

    finalized: bool
    close_requested_at: int
    payer: str
    payee: str
    token: str
    authorized_signer: str
    deposit: int
    settled: int


class Bench:
    """Who and what the tests act with. The payer has approved the escrow for anything."""

    def __init__(self, chain: EvmChain, node: Node) -> None:
        self.node = node
        self.chain_id = chain.chain_id
        self.accounts = chain.accounts
        self.payer: LocalAccount = Account.from_key(chain.accounts[1].private_key)
        self.payee = chain.accounts[0].address
        self.stranger: LocalAccount = Account.from_key(chain.accounts[3].private_key)
        self.token = Contract(node, "TestToken", chain.token)
        self.escrow = Contract(node, "StreamChannel", chain.escrow_v1)
        self.domain = Domain(NAME, chain.chain_id, chain.escrow_v1)
        self.token_domain = Domain("Test USD", chain.chain_id, chain.token)
        self._salts = count(1)
        for account in (self.payer, self.stranger):
            self.token.send("approve", self.escrow.address, 2**200, sender=account.address)

    def salt(self) -> bytes:
        """One that was not used."""
        return next(self._salts).to_bytes(32, "big")

    def balance(self, address: str, token: Contract | None = None) -> int:
        """What an account has of the token."""
        found: int = (token or self.token).call("balanceOf", address)
        return found

    def channel_id(
        self, salt: bytes, *, signer: str = ZERO, payer: str | None = None, token: str | None = None
    ) -> bytes:
        """By the formula of the specifications."""
        types = ["address", "address", "address", "bytes32", "address", "address", "uint256"]
        parties = [payer or self.payer.address, self.payee, token or self.token.address]
        return keccak(encode(types, [*parties, salt, signer, self.escrow.address, self.chain_id]))

    def open(self, deposit: int = DEPOSIT, *, signer: str = ZERO, salt: bytes | None = None) -> bytes:
        """A channel from the payer to the payee."""
        salt = salt or self.salt()
        arguments = (self.payee, self.token.address, deposit, salt, signer)
        self.escrow.send("open", *arguments, sender=self.payer.address)
        return self.channel_id(salt, signer=signer)

    def voucher(self, channel_id: bytes, amount: int, key: LocalAccount | None = None) -> bytes:
        """A voucher's signature, by the payer unless another key is named."""
        return sign(key or self.payer, self.domain.voucher(channel_id, amount))

    def record(self, channel_id: bytes) -> Record:
        """The channel's record."""
        return Record(*self.escrow.call("getChannel", channel_id))

    def close(self, channel_id: bytes) -> None:
        """End a channel with nothing spent."""
        self.escrow.send("close", channel_id, 0, b"", sender=self.payee)

    def request_close(self, channel_id: bytes) -> int:
        """Start the grace period; when it ends."""
        (event,) = self.escrow.send("requestClose", channel_id, sender=self.payer.address)
        ends: int = event.values["closeGraceEnd"]
        return ends

    def expire(self, channel_id: bytes) -> None:
        """End a channel by a withdrawal."""
        ends = self.request_close(channel_id)
        self.node.next_block_at(ends)
        self.escrow.send("withdraw", channel_id, sender=self.payer.address)


def same(found: str, expected: str) -> bool:
    """Whether two spellings are the same address."""
    return found.lower() == expected.lower()


def only(events: list[Any]) -> Any:
    """The one event that there must be."""
    (event,) = events
    return event
