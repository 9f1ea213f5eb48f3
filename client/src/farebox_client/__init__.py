"""httpx transports that answer 402 challenges from a wallet: pay per token through payment channels.

`Wallet` says who pays, whom (`Trust`) and how much at most (`Limits`); `PayingTransport` and
`AsyncPayingTransport` do it. Amounts are integers of token base units (1e-6 USD): `usd` makes, `show` prints them.
"""

from farebox_client.amounts import show, usd
from farebox_client.channel import PATH_USD, RESERVE, Channel
from farebox_client.errors import (
    ChainError,
    ChannelUnavailable,
    InsufficientFunds,
    LimitReached,
    NotTrusted,
    PaymentError,
    PaymentRefused,
    ServerMisbehaved,
    StoreError,
)
from farebox_client.limits import Limits
from farebox_client.manage import Balance
from farebox_client.receipt import Receipt
from farebox_client.store import Store
from farebox_client.transport import AsyncPayingTransport, PayingTransport
from farebox_client.trust import Trust
from farebox_client.wallet import Signed, Wallet

__all__ = [
    "PATH_USD",
    "RESERVE",
    "AsyncPayingTransport",
    "Balance",
    "ChainError",
    "Channel",
    "ChannelUnavailable",
    "InsufficientFunds",
    "LimitReached",
    "Limits",
    "NotTrusted",
    "PayingTransport",
    "PaymentError",
    "PaymentRefused",
    "Receipt",
    "ServerMisbehaved",
    "Signed",
    "Store",
    "StoreError",
    "Trust",
    "Wallet",
    "show",
    "usd",
]
__version__ = "0.1.0"
