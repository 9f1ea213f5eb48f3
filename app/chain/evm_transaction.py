"""Our own transactions on plain EVM chains: EIP-1559, type 2. Pure."""

from eth_utils.crypto import keccak

from app.chain import rlp
from app.chain.backend import Signed
from app.chain.signer import Signer

_TYPE = b"\x02"


def sign(
    signer: Signer,
    *,
    chain_id: int,
    nonce: int,
    to: str,
    data: bytes,
    gas: int,
    max_fee_per_gas: int,
    max_priority_fee_per_gas: int,
) -> Signed:
    """A call of ``to`` without value. Fees are in wei per gas."""
    body: list[rlp.Encodable] = [
        chain_id,
        nonce,
        max_priority_fee_per_gas,
        max_fee_per_gas,
        gas,
        bytes.fromhex(to[2:]),
        0,
        data,
        [],
    ]
    parity, r, s = signer.sign(keccak(_TYPE + rlp.encode(body)))
    raw = _TYPE + rlp.encode([*body, parity, r, s])
    return Signed(raw=raw, tx_hash="0x" + keccak(raw).hex(), nonce=nonce)
