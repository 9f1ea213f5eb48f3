"""Opens channels, adds to deposits, and finds out what became of a channel. As flows.

A channel is written down before its transaction leaves this process, and one process opens or tops up at a
time: money in a channel that nobody remembers would have to wait for its payer's way out.
"""

import json
import secrets
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from farebox_client import voucher
from farebox_client.amounts import show
from farebox_client.challenge import Offer
from farebox_client.channel import Channel, Parts, Status
from farebox_client.errors import ChannelUnavailable, LimitReached
from farebox_client.flow import Flow, pause, work
from farebox_client.node import ChannelState
from farebox_client.store import Store
from farebox_client.wallet import Signed, Wallet

CLAIM_POLL_S = 0.05
CLAIM_POLLS_MAX = 3600
OPENING_POLL_S = 0.5
OPENING_POLLS_MAX = 120
# After this a Tempo transaction that is not on chain never will be, clocks differing a little.
EXPIRED_MARGIN_S = 15


@dataclass(slots=True)
class Bill:
    """What one request may still sign: ``added`` counts base units that its vouchers added."""

    added: int = 0


class Claim:
    """A name in the store that one holder has at a time, in this process or another."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._owner = store, name, uuid.uuid4().hex

    def take(self) -> Flow[None]:
        """Wait for the name. Raises `ChannelUnavailable` after a long time."""
        for _ in range(CLAIM_POLLS_MAX):
            if (yield from work(lambda: self._store.claim(self._name, owner=self._owner))):
                return
            yield from pause(CLAIM_POLL_S)
        raise ChannelUnavailable(f"another process does not finish with {self._name}")

    @contextmanager
    def released(self) -> Generator[None]:
        """Give the name back at the end, also of a flow that is cancelled: so without an effect."""
        try:
            yield
        finally:
            self._store.release(self._name, owner=self._owner)


class Channels:
    """The channels of one wallet."""

    def __init__(self, wallet: Wallet) -> None:
        self.wallet = wallet

    # Vouchers.

    def sign(self, bill: Bill, channel: Channel, *, at_least: int) -> Flow[Channel]:
        """Record that ``at_least`` base units are signed, within all limits. Raises `LimitReached`."""
        limits, store, added = self.wallet.limits, self.wallet.store, 0

        def authorise(found: Channel, today: int) -> None:
            nonlocal added
            limits.check_voucher(added=bill.added + at_least - found.signed, today=today)
            added = at_least - found.signed

        signed = yield from work(lambda: store.sign(channel.channel_id, at_least=at_least, authorise=authorise))
        self._note_signed(bill, signed, added)
        return signed

    def _note_signed(self, bill: Bill, channel: Channel, added: int) -> None:
        bill.added += added
        if added and self.wallet.on_voucher is not None:
            self.wallet.on_voucher(Signed(channel.channel_id, channel.signed, added))

    def voucher(self, channel: Channel, *, cumulative: int, action: str) -> dict[str, Any]:
        """A payload with a voucher of at most what is recorded as signed. Raises `ChannelUnavailable`."""
        if cumulative > channel.signed:
            raise ChannelUnavailable("a voucher must be recorded before it is signed")
        return {"action": action, **voucher.members(self.wallet.account, channel.parts, cumulative=cumulative)}

    # Opening.

    def opening_claim(self, offer: Offer, origin: str) -> Claim:
        """Held while a channel for this offer is looked for or opened."""
        ends = (offer.kind, offer.chain_id, offer.escrow, offer.token, offer.payee, offer.operator)
        return Claim(self.wallet.store, "|".join(("open", self.wallet.address, origin, *map(str, ends))))

    def open(self, bill: Bill, offer: Offer, *, origin: str, url: str) -> Flow[tuple[Channel, dict[str, Any]]]:
        """A new channel, written down, with the payload that opens it. The claim on opening is held."""
        wallet, now = self.wallet, int(self.wallet.clock())
        deposit = wallet.limits.deposit(suggested=offer.suggested_deposit, needed=offer.amount)
        wallet.limits.check_voucher(added=bill.added + offer.amount, today=0)
        parts = Parts(
            kind=offer.kind,
            chain_id=offer.chain_id,
            escrow=offer.escrow,
            payer=wallet.address,
            payee=offer.payee,
            token=offer.token,
            salt="0x" + secrets.token_hex(32),
            operator=offer.operator,
        )
        channel = Channel(
            channel_id="",
            parts=parts,
            origin=origin,
            url=url,
            status="opening",
            deposit=deposit,
            signed=offer.amount,
            accepted=0,
            spent=0,
            valid_before=0,
            opened_at=now,
            used_at=now,
            challenge=offer.header,
        )
        if offer.kind != "evm":
            tempo = wallet.tempo(offer.chain_id)
            parts, funding, valid_before = yield from tempo.open(
                parts, deposit=deposit, fee_payer=offer.fee_payer, now=now
            )
            channel = replace(channel, parts=parts, valid_before=valid_before)
            return (yield from self._write_down(bill, channel, funding))
        return (yield from self._open_evm(bill, offer, channel))

    def _open_evm(self, bill: Bill, offer: Offer, channel: Channel) -> Flow[tuple[Channel, dict[str, Any]]]:
        evm, parts = self.wallet.evm(offer.chain_id), channel.parts
        if _way(offer) == "authorization":
            funding = yield from evm.authorize_open(parts, deposit=channel.deposit, now=channel.opened_at)
            channel = replace(channel, valid_before=int(funding["authorization"]["validBefore"]))
            return (yield from self._write_down(bill, channel, funding))
        claim = self._nonce_claim(offer.chain_id)
        yield from claim.take()
        with claim.released():
            yield from evm.approve(parts, channel.deposit)
            encoded, tx_hash = yield from evm.sign_open(parts, channel.deposit)
            channel, payload = yield from self._write_down(bill, channel, {"type": "hash", "hash": tx_hash})
            yield from evm.broadcast(encoded, tx_hash, what="open")
        return channel, payload

    def _write_down(
        self, bill: Bill, channel: Channel, funding: dict[str, Any]
    ) -> Flow[tuple[Channel, dict[str, Any]]]:
        limits, added = self.wallet.limits, channel.signed
        channel = replace(channel, channel_id=channel.parts.channel_id)
        members = self.voucher(channel, cumulative=added, action="open")
        if funding["type"] == "authorization":
            # The payload's `signature` is the authorization's there.
            members["voucherSignature"] = members.pop("signature")
        payload = {**members, **funding}
        if channel.parts.kind == "evm":
            payload["salt"] = channel.parts.salt
        else:
            payload["authorizedSigner"] = channel.parts.authorized_signer
        channel = replace(channel, opening=json.dumps(payload))

        def authorise(_: Channel, today: int) -> None:
            limits.check_voucher(added=bill.added + added, today=today)

        yield from work(lambda: self.wallet.store.add(channel, authorise=authorise))
        self._note_signed(bill, channel, added)
        return channel, payload

    # Deposits.

    def funding(self, offer: Offer, channel: Channel, amount: int) -> Flow[dict[str, Any]]:
        """A ``topUp`` payload that adds ``amount`` base units; on evm by hash it is on chain already."""
        wallet, parts, now = self.wallet, channel.parts, int(self.wallet.clock())
        payload: dict[str, Any] = {"action": "topUp", "channelId": channel.channel_id}
        if parts.kind != "evm":
            tempo = wallet.tempo(parts.chain_id)
            members = yield from tempo.top_up(parts, amount=amount, fee_payer=offer.fee_payer, now=now)
            descriptor = {"descriptor": parts.descriptor} if parts.kind == "tempo-v2" else {}
            return {**payload, **members, **descriptor}
        evm = wallet.evm(parts.chain_id)
        if _way(offer) == "authorization":
            return {**payload, **(yield from evm.authorize_top_up(parts, amount=amount, now=now))}
        claim = self._nonce_claim(parts.chain_id)
        yield from claim.take()
        with claim.released():
            yield from evm.approve(parts, amount)
            encoded, tx_hash = yield from evm.sign_top_up(parts, amount)
            yield from evm.broadcast(encoded, tx_hash, what="topUp")
        return {**payload, "type": "hash", "hash": tx_hash, "additionalDeposit": str(amount)}

    def top_up_amount(self, offer: Offer, channel: Channel, *, needed: int) -> int:
        """What to add so that the deposit covers ``needed``: as much again as was suggested, within the limit."""
        limits = self.wallet.limits
        limits.check_deposit(needed)
        wanted = max(needed, channel.deposit + (offer.suggested_deposit or channel.deposit))
        if limits.per_channel is not None:
            wanted = min(wanted, limits.per_channel)
        if needed > voucher.amount_max(channel.parts.kind):
            raise LimitReached(f"no channel holds {show(needed)} USD")
        return wanted - channel.deposit

    # What the chain says.

    def state(self, parts: Parts) -> Flow[ChannelState | None]:
        """A channel on chain. Raises `ChainError` and `ChannelUnavailable`."""
        if parts.chain_id not in self.wallet.trust.rpc_urls:
            raise ChannelUnavailable(f"there is no node for chain {parts.chain_id}: name one in Trust.rpc_urls")
        return (yield from self.wallet.node(parts.chain_id).channel(parts))

    def refresh(self, channel: Channel) -> Flow[Channel]:
        """The channel with what the chain says of it; one that is being opened is waited for."""
        store, name = self.wallet.store, channel.channel_id
        for _ in range(OPENING_POLLS_MAX):
            state = yield from self.state(channel.parts)
            if state is not None and not state.finalized:
                live: Status = "leaving" if state.close_requested_at else "open"
                return (yield from work(partial(store.set_status, name, live, deposit=state.deposit)))
            if channel.status != "opening":
                return (yield from work(lambda: store.set_status(name, "closed")))
            if not (yield from self._may_still_open(channel)):
                return (yield from work(lambda: store.set_status(name, "failed")))
            yield from pause(OPENING_POLL_S)
        raise ChannelUnavailable(f"channel {name} is still being opened")

    def _may_still_open(self, channel: Channel) -> Flow[bool]:
        if channel.valid_before:
            return self.wallet.clock() <= channel.valid_before + EXPIRED_MARGIN_S
        # Broadcast by the payer itself: it is in the node's pool, in a block, or nowhere.
        tx_hash = json.loads(channel.opening or "{}").get("hash")
        if tx_hash is None:
            return False
        node = self.wallet.node(channel.parts.chain_id)
        return (yield from node.request("eth_getTransactionByHash", [tx_hash])) is not None

    def _nonce_claim(self, chain_id: int) -> Claim:
        return Claim(self.wallet.store, f"nonce|{self.wallet.address}|{chain_id}")


def _way(offer: Offer) -> str:
    """The first way of funding that the server offers and that is spoken here: the order is its preference."""
    for way in offer.credential_types:
        if way in {"hash", "authorization"}:
            return way
    raise ChannelUnavailable(f"the server takes {', '.join(offer.credential_types)} alone, which is not spoken here")
