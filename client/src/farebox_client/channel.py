"""A payment channel as this wallet knows it, and the id that the chain derives from its parts. Pure.

Source: `draft-tempo-session-00`, "Contract-Backed Channel State" and "Channel Descriptor";
`draft-evm-session-00`, "Channel State".
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from farebox_client.hexadecimal import ZERO_ADDRESS, ZERO_HASH, raw

Kind = Literal["tempo-v2", "tempo-v1", "evm"]
# opening: the transaction may still be mined. leaving: the payer asked for its money back on chain.
Status = Literal["opening", "open", "leaving", "closed", "failed"]

# TIP-1034: the same address on every Tempo chain.
RESERVE = "0x4d50500000000000000000000000000000000000"
# pathUSD, the TIP-20 token that every Tempo chain begins with.
PATH_USD = "0x20c0000000000000000000000000000000000000"


@dataclass(frozen=True, slots=True)
class Parts:
    """What identifies a channel. Lowercase hexadecimal; ``operator`` and the hash are zero but on tempo-v2."""

    kind: Kind
    chain_id: int
    escrow: str
    payer: str
    payee: str
    token: str
    salt: str
    operator: str = ZERO_ADDRESS
    # Zero: the payer signs its own vouchers.
    authorized_signer: str = ZERO_ADDRESS
    expiring_nonce_hash: str = ZERO_HASH

    @property
    def channel_id(self) -> str:
        """The id that the escrow computes for these parts."""
        ends: tuple[tuple[str, Any], ...] = (("address", self.escrow), ("uint256", self.chain_id))
        salt, signer = ("bytes32", raw(self.salt)), ("address", self.authorized_signer)
        if self.kind == "tempo-v2":
            fields = (
                *(("address", each) for each in (self.payer, self.payee, self.operator, self.token)),
                *(salt, signer, ("bytes32", raw(self.expiring_nonce_hash)), *ends),
            )
        else:
            fields = (*(("address", each) for each in (self.payer, self.payee, self.token)), salt, signer, *ends)
        return "0x" + keccak(encode([kind for kind, _ in fields], [value for _, value in fields])).hex()

    @property
    def descriptor(self) -> dict[str, str]:
        """As protocol v2 sends it with every credential."""
        return {
            "payer": self.payer,
            "payee": self.payee,
            "operator": self.operator,
            "token": self.token,
            "salt": self.salt,
            "authorizedSigner": self.authorized_signer,
            "expiringNonceHash": self.expiring_nonce_hash,
        }


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel. Amounts are base units of its token; times are Unix seconds.

    ``signed`` is the most that a voucher of ours ever said and never falls; ``accepted`` and ``spent`` are
    the most that the server's receipts said, never above ``signed``.
    """

    channel_id: str
    parts: Parts
    origin: str
    url: str
    status: Status
    deposit: int
    signed: int
    accepted: int
    spent: int
    # Until then an opening transaction can be mined (0: no bound).
    valid_before: int
    opened_at: int
    used_at: int
    # The newest challenge seen for it, as its header: management may reuse it.
    challenge: str
    # What opened it, as JSON, until the server acknowledged it: then it can be shown again.
    opening: str = field(repr=False, default="")
    close_tx: str = ""

    @property
    def remaining(self) -> int:
        """Base units of the deposit that no voucher covers."""
        return max(0, self.deposit - self.signed)
