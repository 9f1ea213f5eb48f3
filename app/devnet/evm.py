"""A plain EVM chain on this machine, with a token and the contract escrow."""

from typing import Final

from eth_abi.abi import encode

from app.devnet.accounts import DEPLOYER
from app.devnet.chain import LocalChain
from contracts import artifact

CHAIN_ID: Final = 31337
DOMAIN: Final = "EVM Payment Channel"
DEPLOY_GAS: Final = 5_000_000
MINT_GAS: Final = 200_000
# What each account starts with: 1,000 USD.
START_BALANCE: Final = 1_000_000_000


class EvmDevnet(LocalChain):
    """An EVM chain: `TestToken` in every account, and `StreamChannel` with the domain of the evm method."""

    async def start(self) -> None:
        """Start the node, and deploy the token and the escrow."""
        await self._start_node("--chain-id", str(CHAIN_ID), "--hardfork", "prague")
        if self._node is None:
            raise RuntimeError("the chain is not running")
        self.rpc_url = self._node.url
        deployer = self.accounts[DEPLOYER]
        self.token = await self._deploy(deployer, artifact("TestToken").bytecode, gas=DEPLOY_GAS)
        code = artifact("StreamChannel").bytecode + encode(["string"], [DOMAIN])
        self.escrow_v1 = await self._deploy(deployer, code, gas=DEPLOY_GAS)
        for account in self.accounts:
            await self.fund(account.address, START_BALANCE)

    async def fund(self, address: str, base_units: int) -> None:
        """Mint so much more of the token to an account."""
        data = "0x40c10f19" + encode(["address", "uint256"], [address, base_units]).hex()
        sender = self.accounts[DEPLOYER].address
        await self._transact({"from": sender, "to": self.token, "data": data, "gas": hex(MINT_GAS)})
