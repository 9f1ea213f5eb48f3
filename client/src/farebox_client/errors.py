"""Everything that can go wrong with a payment, as one tree.

    PaymentError
    ├── NotTrusted          a chain, escrow, token or payee that nobody told this wallet to trust
    ├── LimitReached        the payment would go beyond a limit that the caller set
    ├── ServerMisbehaved    what the server said contradicts what was signed; nothing more is signed for it
    ├── PaymentRefused      the server refused a credential
    ├── ChannelUnavailable  there is no channel to use, or it cannot be used now
    ├── InsufficientFunds   the wallet holds less than the deposit and its fee
    ├── ChainError          a node did not answer, or a transaction failed
    └── StoreError          the channel file cannot be used

Messages are for people and say what to do. They hold addresses and amounts, never keys or signatures.
"""


class PaymentError(Exception):
    """A payment that was not made. ``code`` is stable; ``exit_code`` is the command line's."""

    code = "payment_error"
    exit_code = 1


class NotTrusted(PaymentError):
    """A challenge names a chain, escrow, token or payee outside the caller's `Trust`. Nothing was signed."""

    code = "not_trusted"
    exit_code = 3


class LimitReached(PaymentError):
    """A payment would exceed the caller's `Limits`. What was signed before stays signed; nothing was added."""

    code = "limit_reached"
    exit_code = 4


class ServerMisbehaved(PaymentError):
    """The server's statement is impossible: a receipt above what was signed, another channel, a changed price."""

    code = "server_misbehaved"
    exit_code = 5


class PaymentRefused(PaymentError):
    """The server refused a credential. ``problem_type`` is its RFC 9457 type, if it named one."""

    code = "payment_refused"
    exit_code = 6

    def __init__(self, message: str, *, status: int, problem_type: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem_type = problem_type


class ChannelUnavailable(PaymentError):
    """No channel of that name, one that is over, or one that another process is opening for too long."""

    code = "channel_unavailable"
    exit_code = 7


class InsufficientFunds(PaymentError):
    """The wallet's balance does not cover a deposit and its fee. Nothing was sent."""

    code = "insufficient_funds"
    exit_code = 8


class ChainError(PaymentError):
    """A node did not answer with sense, is of another chain, or a transaction of ours failed."""

    code = "chain_error"
    exit_code = 9


class StoreError(PaymentError):
    """The channel file cannot be opened, or was written by a newer version."""

    code = "store_error"
    exit_code = 10
