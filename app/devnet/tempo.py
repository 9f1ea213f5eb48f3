"""A Tempo chain on this machine, with both session protocols."""

from pathlib import Path
from typing import Final

from eth_abi.abi import encode

from app.devnet import reserve
from app.devnet.accounts import DEPLOYER
from app.devnet.chain import LocalChain, TransactionFailed, created_address
from app.devnet.node import HOST
from app.devnet.shim import Shim
from contracts import artifact

# What payment clients know as the local Tempo network.
CHAIN_ID: Final = 1337
PATH_USD: Final = "0x20c0000000000000000000000000000000000000"
ESCROW_V2: Final = "0x4d50500000000000000000000000000000000000"
DOMAIN: Final = "Tempo Stream Channel"
# The last one that the node knows, and later than T1: before it, a sender's second transaction with an
# expiring nonce is never mined.
HARDFORK: Final = "t4"
# Tempo takes 1,000 gas for a byte of code.
DEPLOY_GAS: Final = 25_000_000
STATE_INTERVAL_S: Final = 5


class Devnet(LocalChain):
    """A Tempo chain: pathUSD in every account, the contract escrow (v1) and the channel reserve (v2).

    With a state file, the chain goes on where it ended, or a few seconds before if it was killed.
    ``rpc_url`` is the shim's. The addresses are the same on every start.
    """

    escrow_v2: str = ESCROW_V2

    def __init__(self, *, port: int = 0, chain_id: int = CHAIN_ID, state_file: Path | None = None) -> None:
        super().__init__()
        self.token = PATH_USD
        self.chain_id = chain_id
        self._port = port
        self._state_file = state_file
        self._shim: Shim | None = None

    async def start(self) -> None:
        """Start the node, place the escrows, and serve."""
        arguments = ["--network", "tempo", "--hardfork", HARDFORK, "--chain-id", str(self.chain_id)]
        if self._state_file is not None:
            arguments += ["--state", str(self._state_file), "--state-interval", str(STATE_INTERVAL_S)]
        await self._start_node(*arguments)
        stand_in = artifact("ChannelReserveStandIn")
        await self.rpc("anvil_setCode", self.escrow_v2, "0x" + stand_in.deployed_bytecode.hex())
        await self._place_escrow()
        if self._rpc is None:
            raise RuntimeError("the chain is not running")
        self._shim = Shim(self._rpc)
        await self._shim.start(HOST, self._port)
        self.rpc_url = f"http://{HOST}:{self._shim.port}"

    async def stop(self) -> None:
        """Close the shim and stop the node."""
        if self._shim is not None:
            await self._shim.stop()
            self._shim = None
        await super().stop()

    async def fund(self, address: str, base_units: int) -> None:
        """Give an account so much more pathUSD."""
        slot = reserve.balance_slot(bytes.fromhex(address.removeprefix("0x")))
        balance = await self.balance(address) + base_units
        await self.rpc("anvil_setStorageAt", self.token, "0x" + slot.hex(), f"0x{balance:064x}")

    async def _place_escrow(self) -> None:
        deployer = self.accounts[DEPLOYER]
        expected = created_address(deployer.address, 0)
        if not await self._has_code(expected):
            code = artifact("StreamChannel").bytecode + encode(["string"], [DOMAIN])
            found = await self._deploy(deployer, code, gas=DEPLOY_GAS)
            if found != expected:
                raise TransactionFailed(f"the escrow is at {found}, not at {expected}")
        self.escrow_v1 = expected
