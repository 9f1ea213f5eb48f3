"""The client's own transactions on real chains: opens, top-ups, and the way out without a server."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from farebox_client import Channel, ChannelUnavailable, Limits, PayingTransport, Trust, Wallet, usd
from farebox_client.challenge import Offer, read_offers
from farebox_client.channel import Kind
from farebox_client.channels import Bill, Channels
from farebox_client.errors import ChainError
from farebox_client.flow import Flow, T, run
from farebox_client.manage import Management
from farebox_client.node import call_data
from farebox_client.session import Session

from tests.client.test_challenge import header
from tests.devnet_fixtures import EvmChain, TempoChain

FUNDS = usd("20.00")
NATIVE_WEI = 10**18
DEPOSIT = usd("2.00")
ORIGIN = "https://api.example:443"
URL = "https://api.example/v1/chat/completions"


@dataclass
class Payer:
    """A fresh wallet with money on a chain, and the flows that move it."""

    wallet: Wallet
    chain: Any
    node: httpx.HTTPTransport

    def run(self, flow: Flow[T]) -> T:
        return run(flow, self.node, self.node)

    @property
    def channels(self) -> Channels:
        return Channels(self.wallet)

    @property
    def management(self) -> Management:
        return Management(Session(self.wallet))

    def offer(self, kind: Kind, *ways: str) -> Offer:
        """What a server of this chain would offer."""
        (usual,) = read_offers([header()])
        return replace(
            usual,
            kind=kind,
            chain_id=self.chain.chain_id,
            escrow=(self.chain.escrow_v2 if kind == "tempo-v2" else self.chain.escrow_v1).lower(),
            token=self.chain.token.lower(),
            payee=Account.create().address.lower(),
            suggested_deposit=DEPOSIT,
            credential_types=ways or ("hash",),
        )

    def open(self, offer: Offer) -> Channel:
        """Open a channel as its request would, with the chain in the server's place."""
        channel, payload = self.run(self.channels.open(Bill(), offer, origin=ORIGIN, url=URL))
        if payload["type"] == "transaction":
            self.send(payload["transaction"])
        return self.run(self.channels.refresh(channel))

    def send(self, raw: str) -> None:
        """What the server does with a transaction that it was given."""
        node = self.wallet.node(self.chain.chain_id)
        tx_hash = self.run(node.request("eth_sendRawTransaction", [raw]))
        self.run(node.wait_mined(tx_hash, what="transaction"))

    @property
    def balance(self) -> int:
        found: int = self.chain.balance(self.wallet.address)
        return found


MakePayer = Callable[..., Payer]


@pytest.fixture
def make_payer(tmp_path: Path) -> Iterator[MakePayer]:
    """Makes payers with money."""
    made: list[Payer] = []

    def make(chain: Any, **changes: Any) -> Payer:
        account = Account.create()
        chain.fund(account.address, FUNDS)
        if not hasattr(chain.chain, "escrow_v2"):
            chain.rpc("anvil_setBalance", account.address, hex(NATIVE_WEI))
        trust = Trust(
            rpc_urls={chain.chain_id: chain.rpc_url},
            tokens={chain.chain_id: [chain.token]},
            escrows={chain.chain_id: [chain.escrow_v1]},
        )
        store = tmp_path / f"{account.address}.db"
        wallet = Wallet.from_key(account.key.hex(), trust=trust, store=store, limits=Limits(**changes))
        made.append(Payer(wallet, chain, httpx.HTTPTransport()))
        return made[-1]

    yield make
    for payer in made:
        payer.wallet.store.close()
        payer.node.close()


TEMPO_KINDS: list[Kind] = ["tempo-v2", "tempo-v1"]


@pytest.mark.parametrize("kind", TEMPO_KINDS)
def test_open_and_top_up_are_on_chain(devnet: TempoChain, make_payer: MakePayer, kind: Kind) -> None:
    payer = make_payer(devnet)
    offer = payer.offer(kind)
    channel = payer.open(offer)
    assert (channel.status, channel.deposit) == ("open", DEPOSIT)
    # What is missing beside the deposit is the fee, which is paid in the same token.
    assert 0 < FUNDS - DEPOSIT - payer.balance <= usd("0.10")
    payload = payer.run(payer.channels.funding(offer, channel, usd("0.50")))
    payer.send(payload["transaction"])
    assert payer.run(payer.channels.refresh(channel)).deposit == DEPOSIT + usd("0.50")


@pytest.mark.parametrize("kind", TEMPO_KINDS)
def test_two_top_ups_of_one_amount_in_one_second_add_twice(
    devnet: TempoChain, make_payer: MakePayer, kind: Kind
) -> None:
    payer = make_payer(devnet)
    now = payer.wallet.clock()
    payer.wallet = replace(payer.wallet, clock=lambda: now)
    # Until the price of gas stands still, as it does on Tempo: it tells transactions apart, too.
    devnet.rpc("anvil_mine", "0x200")
    offer = payer.offer(kind)
    channel = payer.open(offer)
    for _ in range(2):
        payload = payer.run(payer.channels.funding(offer, channel, usd("0.25")))
        payer.send(payload["transaction"])
    assert payer.run(payer.channels.refresh(channel)).deposit == DEPOSIT + usd("0.50")


@pytest.mark.parametrize("kind", TEMPO_KINDS)
def test_second_open_is_another_channel(devnet: TempoChain, make_payer: MakePayer, kind: Kind) -> None:
    payer = make_payer(devnet)
    first, second = payer.open(payer.offer(kind)), payer.open(payer.offer(kind))
    assert first.channel_id != second.channel_id
    assert (first.deposit, second.deposit) == (DEPOSIT, DEPOSIT)


def test_evm_open_and_top_up_are_broadcast_by_the_payer(evm_chain: EvmChain, make_payer: MakePayer) -> None:
    payer = make_payer(evm_chain)
    offer = payer.offer("evm", "hash")
    channel = payer.open(offer)
    assert (channel.status, channel.deposit, payer.balance) == ("open", DEPOSIT, FUNDS - DEPOSIT)
    payload = payer.run(payer.channels.funding(offer, channel, usd("0.50")))
    assert payload["type"] == "hash"
    assert payer.run(payer.channels.refresh(channel)).deposit == DEPOSIT + usd("0.50")


def relay(payer: Payer, data: bytes) -> None:
    """Call the escrow as a server would, from an account of its own."""
    sender = payer.chain.accounts[3].address
    transaction = {"from": sender, "to": payer.chain.escrow_v1, "data": "0x" + data.hex(), "gas": hex(1_000_000)}
    tx_hash = payer.chain.rpc("eth_sendTransaction", transaction)
    payer.run(payer.wallet.node(payer.chain.chain_id).wait_mined(tx_hash, what="relayed"))


def test_evm_open_and_top_up_by_authorization_cost_the_payer_no_gas(evm_chain: EvmChain, make_payer: MakePayer) -> None:
    payer = make_payer(evm_chain)
    evm_chain.rpc("anvil_setBalance", payer.wallet.address, "0x0")
    offer = payer.offer("evm", "permit2", "authorization", "hash")
    channel, payload = payer.run(payer.channels.open(Bill(), offer, origin=ORIGIN, url=URL))
    given = payload["authorization"]
    signature, nonce = bytes.fromhex(payload["signature"][2:]), bytes.fromhex(given["nonce"][2:])
    ends = (int(given["validAfter"]), int(given["validBefore"]), nonce, signature)
    zero, salt = "0x" + "00" * 20, bytes.fromhex(payload["salt"][2:])
    relay(
        payer,
        call_data(
            "openWithAuthorization(address,address,uint128,bytes32,address,address,uint256,uint256,bytes32,bytes)",
            *(offer.payee, offer.token, DEPOSIT, salt, zero, payer.wallet.address, *ends),
        ),
    )
    channel = payer.run(payer.channels.refresh(channel))
    assert (channel.status, channel.deposit) == ("open", DEPOSIT)
    payload = payer.run(payer.channels.funding(offer, channel, usd("0.50")))
    given = payload["authorization"]
    signature, nonce = bytes.fromhex(payload["signature"][2:]), bytes.fromhex(given["nonce"][2:])
    ends = (int(given["validAfter"]), int(given["validBefore"]), nonce, signature)
    salt, name = bytes.fromhex(payload["salt"][2:]), bytes.fromhex(channel.channel_id[2:])
    relay(
        payer,
        call_data(
            "topUpWithAuthorization(bytes32,uint128,address,bytes32,uint256,uint256,bytes32,bytes)",
            *(name, usd("0.50"), payer.wallet.address, salt, *ends),
        ),
    )
    assert payer.run(payer.channels.refresh(channel)).deposit == DEPOSIT + usd("0.50")


def leave(payer: Payer, channel: Channel, *, later: Callable[[], None]) -> None:
    """Ask for the money back and take it, as a payer whose server is gone."""
    before = payer.balance
    payer.run(payer.management.request_close(channel.channel_id))
    with pytest.raises(ChannelUnavailable, match="can be withdrawn in"):
        payer.run(payer.management.withdraw(channel.channel_id))
    balance = payer.run(payer.management.balance(channel.channel_id))
    assert (balance.deposit, balance.settled) == (DEPOSIT, 0)
    assert balance.close_requested_at > 0
    later()
    payer.run(payer.management.withdraw(channel.channel_id))
    assert payer.balance >= before + DEPOSIT - usd("0.20")
    assert payer.wallet.store.get(channel.channel_id).status == "closed"
    with pytest.raises(ChannelUnavailable, match="is over"):
        payer.run(payer.management.withdraw(channel.channel_id))


def test_payer_leaves_an_evm_channel(new_evm_chain: Callable[[], EvmChain], make_payer: MakePayer) -> None:
    chain = new_evm_chain()
    payer = make_payer(chain)
    leave(payer, payer.open(payer.offer("evm")), later=lambda: chain.increase_time(901))


@pytest.mark.parametrize("kind", TEMPO_KINDS)
def test_payer_leaves_a_tempo_channel(new_devnet: Callable[[], TempoChain], make_payer: MakePayer, kind: Kind) -> None:
    chain = new_devnet()
    payer = make_payer(chain)
    moved = [0.0]
    clock = payer.wallet.clock
    object.__setattr__(payer.wallet, "clock", lambda: clock() + moved[0])

    def later() -> None:
        chain.increase_time(901)
        moved[0] += 901

    leave(payer, payer.open(payer.offer(kind)), later=later)


def test_open_that_was_never_broadcast_fails_when_it_cannot_be_mined_any_more(
    devnet: TempoChain, make_payer: MakePayer
) -> None:
    payer = make_payer(devnet)
    offer = payer.offer("tempo-v2")
    channel, _ = payer.run(payer.channels.open(Bill(), offer, origin=ORIGIN, url=URL))
    now = payer.wallet.clock()
    object.__setattr__(payer.wallet, "clock", lambda: now + 60)
    assert payer.run(payer.channels.refresh(channel)).status == "failed"


def test_node_of_another_chain_is_refused(devnet: TempoChain, make_payer: MakePayer) -> None:
    payer = make_payer(devnet)
    trust = replace(payer.wallet.trust, rpc_urls={4217: devnet.rpc_url})
    payer.wallet = replace(payer.wallet, trust=trust, _nodes={})
    offer = replace(payer.offer("tempo-v2"), chain_id=4217)
    with pytest.raises(ChainError, match="is of chain 1337"):
        payer.run(payer.channels.open(Bill(), offer, origin=ORIGIN, url=URL))
    assert payer.wallet.store.channels() == []


def test_node_that_is_not_there_is_named(make_payer: MakePayer, devnet: TempoChain) -> None:
    payer = make_payer(devnet)
    trust = replace(payer.wallet.trust, rpc_urls={devnet.chain_id: "http://127.0.0.1:9"})
    payer.wallet = replace(payer.wallet, trust=trust, _nodes={})
    with pytest.raises(ChainError, match="did not answer eth_chainId"):
        payer.run(payer.channels.open(Bill(), payer.offer("tempo-v2"), origin=ORIGIN, url=URL))


def test_transport_reads_a_balance(devnet: TempoChain, make_payer: MakePayer) -> None:
    payer = make_payer(devnet)
    payer.open(payer.offer("tempo-v2"))
    with PayingTransport(payer.wallet) as transport:
        assert transport.balance().remaining == DEPOSIT
