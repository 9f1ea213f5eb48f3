"""A local chain that real payment clients can use: a real node, the escrows on it, and money for wallets.

No part of a paid request: `farebox devnet`, `make run`, the demo and the tests start one. `Devnet` is a
Tempo chain with both session protocols, `EvmDevnet` a plain EVM chain with the contract escrow;
`DevnetThread` runs either behind blocking calls.
"""

from app.devnet.accounts import DevAccount, dev_accounts
from app.devnet.chain import LocalChain
from app.devnet.evm import EvmDevnet
from app.devnet.tempo import Devnet
from app.devnet.thread import DevnetThread

__all__ = ["DevAccount", "Devnet", "DevnetThread", "EvmDevnet", "LocalChain", "dev_accounts"]
