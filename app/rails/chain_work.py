"""What the session rail needs of the workers on the chain, which stand above it."""

from collections.abc import Awaitable
from typing import Protocol

from app.chain.backend import ChannelBackend


class ChainWork(Protocol):
    """What the rail needs of the workers on the chain."""

    def lag_of(self, backend: ChannelBackend) -> float:
        """Seconds since a backend's chain was last seen whole; infinite before it was."""
        ...

    def close(self, channel_id: str) -> Awaitable[str]:
        """The hash of the transaction that closes a frozen channel, once it is mined; may be cancelled."""
        ...
