"""Worked examples with a fixed key: an open transaction, channel ids, voucher digests and signatures.

Each is computed with a public library and compared with what the server computes and with what the escrow
on the local chain wants signed.
"""

import json
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

from app.chain import abi, tempo_transaction
from app.chain.backend import Offer
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor
from app.mpp.voucher import signing_hash
from docs.payments.scenes import Play, expect
from tests.sessions import offer_on

KEY = "0x" + "11" * 32
SALT = "0x" + "22" * 32
DEPOSIT = 1_000_000
AMOUNT = 250_000
VALID_BEFORE = 1_800_000_000
GWEI = 10**9
_WRAP = 100


def vectors(play: Play) -> None:
    """The blocks of the worked examples."""
    payer = str(Account.from_key(KEY).address).lower()
    play["vector.key"], play["vector.payer"], play["vector.salt"], play["vector.amount"] = KEY, payer, SALT, AMOUNT
    tempo, evm = play.stage.tempo, play.stage.evm
    v2 = offer_on(tempo, "tempo-v2")
    nonce_hash = transaction(play, v2, payer)
    for name, offer, chain in (("v2", v2, tempo), ("v1", offer_on(tempo, "tempo-v1"), tempo), ("evm", _evm(evm), evm)):
        descriptor = Descriptor(
            payer=payer,
            payee=offer.recipient,
            token=offer.currency,
            salt=SALT,
            authorized_signer=payer,
            expiring_nonce_hash=nonce_hash if name == "v2" else "0x" + "00" * 32,
        )
        if name == "v2":
            play["vector.descriptor"] = _fenced("json", json.dumps(descriptor.to_wire(), indent=2))
        voucher(play, name, offer=offer, descriptor=descriptor, chain=chain)


def transaction(play: Play, offer: Offer, payer: str) -> str:
    """A signed open of protocol v2; gives its expiring nonce's hash."""
    call = abi.V2_OPEN.call(offer.recipient, ZERO_ADDRESS, offer.currency, DEPOSIT, bytes.fromhex(SALT[2:]), payer)
    unsigned = TempoTransaction.create(
        chain_id=offer.chain_id,
        gas_limit=1_000_000,
        max_fee_per_gas=25 * GWEI,
        max_priority_fee_per_gas=0,
        nonce_key=2**256 - 1,
        valid_before=VALID_BEFORE,
        fee_token=offer.currency,
        calls=(Call.create(to=offer.escrow, data=call),),
    )
    signed = unsigned.sign(KEY)
    form, raw = signed.encode_for_signing(), signed.encode()
    nonce_hash = "0x" + keccak(form + bytes.fromhex(payer[2:])).hex()
    read = tempo_transaction.parse("0x" + raw.hex())
    expect((read.sender, read.expiring_nonce_hash) == (payer, nonce_hash), read)
    play["vector.transaction"] = _fenced(
        "text",
        "\n".join(
            [
                "signing form, 0x76 and 13 fields:",
                *_wrapped("0x" + form.hex()),
                "",
                "keccak256 of it, which the sender signs:",
                "0x" + keccak(form).hex(),
                "",
                "signed transaction, 0x76 and 14 fields:",
                *_wrapped("0x" + raw.hex()),
                "",
                "expiringNonceHash, keccak256(signing form || sender's 20 bytes):",
                nonce_hash,
            ]
        ),
    )
    play["vector.selectors"] = "\n".join(
        f"| {what} | `{function.name}({','.join(function.inputs)})` | `0x{function.selector.hex()}` |"
        for what, function in _FUNCTIONS
    )
    return nonce_hash


def voucher(play: Play, name: str, *, offer: Offer, descriptor: Descriptor, chain: Any) -> None:
    """A voucher in one domain: the id, the digest and the signature."""
    protocol = offer.protocol
    channel_id = descriptor.channel_id(protocol=protocol, escrow=offer.escrow, chain_id=offer.chain_id)
    domain = offer.domain
    typed = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Voucher": [
                {"name": "channelId", "type": "bytes32"},
                {"name": "cumulativeAmount", "type": f"uint{domain.amount_bits}"},
            ],
        },
        "primaryType": "Voucher",
        "domain": {
            "name": domain.name,
            "version": "1",
            "chainId": offer.chain_id,
            "verifyingContract": offer.escrow,
        },
        "message": {"channelId": channel_id, "cumulativeAmount": AMOUNT},
    }
    message = encode_typed_data(full_message=typed)
    digest = keccak(b"\x19" + message.version + message.header + message.body)
    expect(digest == signing_hash(domain, channel_id=channel_id, cumulative_amount=AMOUNT), name)
    call = abi.voucher_digest(domain.amount_bits).call(bytes.fromhex(channel_id[2:]), AMOUNT)
    on_chain = chain.rpc("eth_call", {"to": offer.escrow, "data": "0x" + call.hex()}, "latest")
    expect(on_chain == "0x" + digest.hex(), (name, on_chain))
    signature = bytes(Account.unsafe_sign_hash(digest, KEY).signature)
    separator = keccak(
        keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
        + keccak(domain.name.encode())
        + keccak(b"1")
        + encode(("uint256", "address"), (offer.chain_id, offer.escrow))
    )
    lines = [
        f"domain            {domain.name}, version 1, chain {offer.chain_id}, {offer.escrow}",
        f"domain separator  0x{separator.hex()}",
        f"type              Voucher(bytes32 channelId,uint{domain.amount_bits} cumulativeAmount)",
        f"channelId         {channel_id}",
        f"digest            0x{digest.hex()}",
        f"signature         0x{signature.hex()}",
    ]
    play[f"vector.{name}"] = _fenced("text", "\n".join(lines))


_FUNCTIONS = (
    ("v2, open", abi.V2_OPEN),
    ("v2, top up", abi.V2_TOP_UP),
    ("v2, ask the chain to close", abi.Function("requestClose", (abi.DESCRIPTOR,))),
    ("v2, take the deposit back", abi.Function("withdraw", (abi.DESCRIPTOR,))),
    ("v1 and evm, approve (on the token)", abi.APPROVE),
    ("v1 and evm, open", abi.V1_OPEN),
    ("v1 and evm, top up", abi.V1_TOP_UP_256),
    ("v1 and evm, ask the chain to close", abi.Function("requestClose", ("bytes32",))),
    ("v1 and evm, take the deposit back", abi.Function("withdraw", ("bytes32",))),
)


def _evm(chain: Any) -> Offer:
    return offer_on(chain, "evm")


def _wrapped(text: str) -> list[str]:
    return [text[start : start + _WRAP] for start in range(0, len(text), _WRAP)]


def _fenced(kind: str, text: str) -> str:
    """A block whose values are fixed, so that none needs a name."""
    return f"```{kind}\n{text}\n```"
