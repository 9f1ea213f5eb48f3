"""A local chain behind blocking calls, for tests and other code without an event loop of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from app.devnet.accounts import DevAccount
from app.devnet.chain import LocalChain

ChainT = TypeVar("ChainT", bound=LocalChain)
ResultT = TypeVar("ResultT")

CALL_TIMEOUT_S = 900


class DevnetThread(Generic[ChainT]):
    """Runs a chain in a thread with an event loop; a context manager. Safe to use from any thread."""

    def __init__(self, chain: ChainT) -> None:
        self.chain = chain
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="devnet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self.chain.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self.chain.stop())
        finally:
            self._end()

    @property
    def rpc_url(self) -> str:
        """Where clients and servers connect."""
        return self.chain.rpc_url

    @property
    def node_url(self) -> str:
        """The node itself, behind what is served to clients."""
        return self.chain.node_url

    @property
    def chain_id(self) -> int:
        """The chain's id."""
        return self.chain.chain_id

    @property
    def token(self) -> str:
        """The address of the token that channels are paid in."""
        return self.chain.token

    @property
    def escrow_v1(self) -> str:
        """The contract escrow's address."""
        return self.chain.escrow_v1

    @property
    def escrow_v2(self) -> str:
        """The channel reserve's address; on a Tempo chain alone."""
        found: str = getattr(self.chain, "escrow_v2")  # noqa: B009 - absent on a plain EVM chain
        return found

    @property
    def accounts(self) -> tuple[DevAccount, ...]:
        """Development accounts with money."""
        return self.chain.accounts

    def fund(self, address: str, base_units: int) -> None:
        """Give an account so much more of the token."""
        self._run(self.chain.fund(address, base_units))

    def balance(self, address: str, token: str | None = None) -> int:
        """What an account has of the token, or of another."""
        return self._run(self.chain.balance(address, token))

    def mine(self) -> None:
        """Mine a block."""
        self._run(self.chain.mine())

    def increase_time(self, seconds: int) -> None:
        """Move the chain's clock, and mine; only on a chain that nobody else uses."""
        self._run(self.chain.increase_time(seconds))

    def snapshot(self) -> str:
        """Remember the state; the id is for `revert`."""
        return self._run(self.chain.snapshot())

    def revert(self, snapshot: str) -> None:
        """Go back to a snapshot, which is used up by it."""
        self._run(self.chain.revert(snapshot))

    def rpc(self, method: str, *params: Any) -> Any:
        """The result of a method, from the node itself. Raises `RpcFailed`."""
        return self._run(self.chain.rpc(method, *params))

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
