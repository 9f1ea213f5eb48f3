"""The well-known development accounts: everybody has their keys, so they hold play money only."""

from dataclasses import dataclass
from functools import cache

from eth_account import Account

MNEMONIC = "test test test test test test test test test test test junk"
COUNT = 10
# The node's own first ten: who plays which part on a local chain.
OPERATOR = 0
USER = 1
SPONSOR = 2
DEPLOYER = COUNT - 1


@dataclass(frozen=True, slots=True)
class DevAccount:
    """An address with its private key, as ``0x`` hex."""

    address: str
    private_key: str


@cache
def dev_accounts() -> tuple[DevAccount, ...]:
    """The accounts: the operator (payee), a user's wallet, a sponsor of fees, more users, the deployer."""
    # The derivation is old and everywhere; what is unaudited is fine for keys that everybody knows.
    Account.enable_unaudited_hdwallet_features()
    found = [Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}") for index in range(COUNT)]
    return tuple(DevAccount(account.address, "0x" + bytes(account.key).hex()) for account in found)
