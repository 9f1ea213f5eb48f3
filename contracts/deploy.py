"""Put `StreamChannel` on a chain. ``farebox contracts deploy`` is the command.

What talks to chains is imported by the functions that need it: the rest of the product starts without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from contracts import artifact

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount
    from web3 import Web3
    from web3.exceptions import Web3RPCError

Domain = Literal["tempo", "evm"]

# What clients of each method sign vouchers for.
DOMAIN_NAMES: Final[dict[Domain, str]] = {"tempo": "Tempo Stream Channel", "evm": "EVM Payment Channel"}
RPC_TIMEOUT_S: Final = 30
# An estimate is exact for the state it was made on; what is not used is not paid.
_GAS_MARGIN_PERCENT: Final = 20
_FEE_MARGIN: Final = 2


class DeploymentFailed(Exception):
    """Nothing usable was deployed; the message says why."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """An escrow that is on its chain."""

    address: str
    chain_id: int
    domain: Domain
    transaction_hash: str
    block_number: int
    deployer: str


def deploy(
    rpc_url: str,
    *,
    chain_id: int,
    private_key: str,
    domain: Domain,
    fee_token: str | None = None,
    confirmations: int = 1,
    timeout_s: int = 120,
) -> Deployment:
    """Deploy from a private key's account, and wait for so many blocks.

    On Tempo the fee is paid in ``fee_token``, a TIP-20 token, or in the account's own default. Raises
    `DeploymentFailed`.
    """
    from eth_account import Account
    from web3 import HTTPProvider, Web3
    from web3.exceptions import TimeExhausted, Web3Exception, Web3RPCError

    try:
        account: LocalAccount = Account.from_key(private_key)
    except Exception:
        # What it raises may quote the key.
        raise DeploymentFailed("not a private key: 32 bytes of hex are expected") from None
    web3 = Web3(HTTPProvider(rpc_url, request_kwargs={"timeout": RPC_TIMEOUT_S}))
    try:
        if web3.eth.chain_id != chain_id:
            raise DeploymentFailed(f"the node is on chain {web3.eth.chain_id}, not on {chain_id}")
        code = _creation_code(domain)
        if domain == "tempo":
            raw = _tempo_transaction(web3, account, code, fee_token)
        else:
            raw = _ethereum_transaction(web3, account, code)
        sent = web3.eth.send_raw_transaction(raw)
        receipt = web3.eth.wait_for_transaction_receipt(sent, timeout=timeout_s)
        address = receipt["contractAddress"]
        if receipt["status"] != 1 or address is None:
            raise DeploymentFailed(f"transaction {sent.to_0x_hex()} was mined and failed")
        _wait_for_block(web3, receipt["blockNumber"] + confirmations - 1, timeout_s)
        _check(web3, address, domain)
    except TimeExhausted as error:
        raise DeploymentFailed(f"not confirmed within {timeout_s} s: {error}") from error
    except Web3RPCError as error:
        raise DeploymentFailed(f"the node refused: {_reason(error)}") from error
    except (Web3Exception, OSError) as error:
        raise DeploymentFailed(f"the node at {urlsplit(rpc_url).hostname} cannot be used: {error}") from error
    return Deployment(
        address=address,
        chain_id=chain_id,
        domain=domain,
        transaction_hash=sent.to_0x_hex(),
        block_number=receipt["blockNumber"],
        deployer=account.address,
    )


def _reason(error: Web3RPCError) -> str:
    """The node's own words; without its data, which may be the whole transaction."""
    answer = (error.rpc_response or {}).get("error")
    return str(answer["message"]) if isinstance(answer, dict) and "message" in answer else str(error)


def _creation_code(domain: Domain) -> bytes:
    from eth_abi.abi import encode

    return artifact("StreamChannel").bytecode + encode(["string"], [DOMAIN_NAMES[domain]])


def _gas(web3: Web3, account: LocalAccount, code: bytes) -> int:
    estimate = web3.eth.estimate_gas({"from": account.address, "data": code})
    return estimate * (100 + _GAS_MARGIN_PERCENT) // 100


def _ethereum_transaction(web3: Web3, account: LocalAccount, code: bytes) -> bytes:
    price = web3.eth.gas_price
    signed = account.sign_transaction(
        {
            "chainId": web3.eth.chain_id,
            "nonce": web3.eth.get_transaction_count(account.address),
            "data": code,
            "value": 0,
            "gas": _gas(web3, account, code),
            "maxFeePerGas": price * _FEE_MARGIN,
            "maxPriorityFeePerGas": min(price, web3.eth.max_priority_fee),
        }
    )
    return bytes(signed.raw_transaction)


def _tempo_transaction(web3: Web3, account: LocalAccount, code: bytes, fee_token: str | None) -> bytes:
    from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

    price = web3.eth.gas_price
    transaction = TempoTransaction.create(
        chain_id=web3.eth.chain_id,
        nonce=web3.eth.get_transaction_count(account.address),
        gas_limit=_gas(web3, account, code),
        max_fee_per_gas=price * _FEE_MARGIN,
        max_priority_fee_per_gas=price,
        fee_token=fee_token,
        calls=(Call.create(to=b"", data=code),),
    )
    return bytes(transaction.sign(bytes(account.key).hex()).encode())


def _wait_for_block(web3: Web3, number: int, timeout_s: int) -> None:
    import time

    from web3.exceptions import TimeExhausted

    ends = time.monotonic() + timeout_s
    while web3.eth.block_number < number:
        if time.monotonic() > ends:
            raise TimeExhausted(f"block {number} was not mined")
        time.sleep(1)


def _check(web3: Web3, address: str, domain: Domain) -> None:
    """The contract must say itself that it is what vouchers will be signed for."""
    escrow = web3.eth.contract(address=web3.to_checksum_address(address), abi=artifact("StreamChannel").abi)
    _, name, _, chain_id, verifier, *_ = escrow.functions.eip712Domain().call()
    if (name, chain_id, verifier) != (DOMAIN_NAMES[domain], web3.eth.chain_id, web3.to_checksum_address(address)):
        raise DeploymentFailed(f"the contract at {address} has the domain {name!r} on chain {chain_id}")
