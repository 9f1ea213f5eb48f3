"""What pays: a key, whom it trusts, how much it may spend, and the file that remembers."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount

from farebox_client.evm import EvmChain
from farebox_client.limits import Limits
from farebox_client.node import Node
from farebox_client.receipt import Receipt
from farebox_client.store import Clock, Store
from farebox_client.tempo import TempoChain
from farebox_client.trust import Trust

STORE_ENV = "FAREBOX_CLIENT_STORE"


@dataclass(frozen=True, slots=True)
class Signed:
    """A voucher that was just signed: ``cumulative`` in all, ``added`` by it. Base units."""

    channel_id: str
    cumulative: int
    added: int


OnReceipt = Callable[[Receipt], None]
OnVoucher = Callable[[Signed], None]


def default_store() -> Path:
    """The channel file where none is named: $FAREBOX_CLIENT_STORE, else in the user's state folder."""
    named = os.environ.get(STORE_ENV)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "farebox-client" / "channels.db"


@dataclass(frozen=True, slots=True)
class Wallet:
    """A payer. One may serve any number of transports, threads and processes at once.

    ``on_receipt`` and ``on_voucher`` are told of every checked receipt and every new voucher; they must not
    block. ``clock`` gives Unix seconds.
    """

    account: LocalAccount = field(repr=False)
    trust: Trust
    store: Store
    limits: Limits = field(default_factory=Limits)
    on_receipt: OnReceipt | None = None
    on_voucher: OnVoucher | None = None
    clock: Clock = time.time
    _nodes: dict[int, Node] = field(default_factory=dict, repr=False)

    @classmethod
    def from_key(
        cls,
        key: str,
        *,
        trust: Trust,
        limits: Limits | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        on_receipt: OnReceipt | None = None,
        on_voucher: OnVoucher | None = None,
    ) -> "Wallet":
        """A wallet of a private key in hexadecimal. Raises `ValueError` without repeating the key, and `StoreError`."""
        try:
            account = Account.from_key(key.strip())
        except Exception:
            # The library's messages and chained errors show the key.
            raise ValueError("the key is not a private key of 32 bytes in hexadecimal") from None
        opened = store if isinstance(store, Store) else Store(store or default_store())
        return cls(account, trust, opened, limits or Limits(), on_receipt, on_voucher)

    @property
    def address(self) -> str:
        """The payer, lowercase."""
        return str(self.account.address).lower()

    def node(self, chain_id: int) -> Node:
        """The trusted node of a chain. Raises `KeyError` for one that is not trusted."""
        found = self._nodes.get(chain_id)
        if found is None:
            found = self._nodes[chain_id] = Node(self.trust.rpc_urls[chain_id], chain_id=chain_id)
        return found

    def tempo(self, chain_id: int) -> TempoChain:
        """Transactions of a Tempo chain."""
        return TempoChain(self.node(chain_id), self.account, self.limits)

    def evm(self, chain_id: int) -> EvmChain:
        """Transactions of another EVM chain."""
        return EvmChain(self.node(chain_id), self.account, self.limits)
