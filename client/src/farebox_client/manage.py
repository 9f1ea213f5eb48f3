"""What a payer does about a channel beside requests: close, top up, and leave on chain. As flows."""

from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from mpp._parsing import ParseError

from farebox_client.amounts import show
from farebox_client.challenge import Offer, read_offer, read_offers
from farebox_client.channel import Channel
from farebox_client.errors import ChainError, ChannelUnavailable, PaymentRefused, ServerMisbehaved
from farebox_client.flow import Flow, read, send, work
from farebox_client.node import ChannelState
from farebox_client.payment import GONE, Payment, begin
from farebox_client.receipt import Receipt
from farebox_client.session import Session
from farebox_client.wallet import Wallet

# For requests that no caller's timeout came with: a close is answered when it is on chain.
TIMEOUT = httpx.Timeout(connect=5, read=90, write=10, pool=10)


@dataclass(frozen=True, slots=True)
class Balance:
    """A channel's money in base units, by the chain and by the last receipt."""

    channel: Channel
    deposit: int
    settled: int
    spent: int
    signed: int
    close_requested_at: int

    @property
    def remaining(self) -> int:
        """What is left to spend."""
        return max(0, self.deposit - max(self.spent, self.settled))


class Management:
    """The payer's own acts. A channel may be named by its id; otherwise there must be exactly one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._channels = session.channels

    @property
    def wallet(self) -> Wallet:
        """Whose channels these are."""
        return self._session.wallet

    def channels(self) -> Flow[Sequence[Channel]]:
        """All channels of the wallet that the store knows, newest first."""
        payer = self.wallet.address
        return (yield from work(lambda: self.wallet.store.channels(payer=payer)))

    def balance(self, channel_id: str | None = None) -> Flow[Balance]:
        """A channel's money as the chain has it now. Raises `ChannelUnavailable` and `ChainError`."""
        channel = yield from self._pick(channel_id)
        state = yield from self._channels.state(channel.parts)
        found = state or ChannelState(0, 0, 0, finalized=True)
        return Balance(channel, found.deposit, found.settled, channel.spent, channel.signed, found.close_requested_at)

    def close(self, channel_id: str | None = None) -> Flow[Receipt]:
        """Have the server close the channel: it keeps what was spent, the rest comes back.

        Returns its receipt with ``tx_hash``. Nothing more is signed than was before. Raises `PaymentRefused`
        and `ChannelUnavailable`; after either the channel is as it was.
        """
        channel = yield from self._pick(channel_id)
        payment = yield from self._payment(channel)
        for cumulative in self._closing_amounts(channel):
            payload = self._channels.voucher(channel, cumulative=cumulative, action="close")
            try:
                receipt = yield from self._session.manage(payment, payload)
            except PaymentRefused as error:
                if error.problem_type in GONE:
                    found = yield from self._channels.refresh(channel)
                    raise ChannelUnavailable(f"channel {found.channel_id} is {found.status} by the chain") from error
                # The server spent more than its receipts said, up to what was signed.
                if cumulative == channel.signed:
                    raise
                continue
            if receipt is None or receipt.tx_hash is None:
                raise ServerMisbehaved("the server says that the channel is closed, and names no transaction")
            return (yield from self._closed(channel, receipt))
        raise ChannelUnavailable(f"channel {channel.channel_id} could not be closed")

    def _closing_amounts(self, channel: Channel) -> list[int]:
        """What to sign for a close, lowest first.

        A v1 or evm escrow may pay the whole voucher out, so it says what was spent; on tempo-v2 the escrow
        pays what the server captures, which is what was spent.
        """
        if channel.parts.kind == "tempo-v2":
            return [channel.signed]
        return sorted({channel.spent, channel.accepted, channel.signed})

    def _closed(self, channel: Channel, receipt: Receipt) -> Flow[Receipt]:
        store, name = self.wallet.store, channel.channel_id
        yield from work(lambda: store.set_status(name, "closed", close_tx=receipt.tx_hash or ""))
        return receipt

    def top_up(self, amount: int, channel_id: str | None = None) -> Flow[Channel]:
        """Add exactly ``amount`` base units to the deposit, within `Limits.per_channel`.

        Cancels a close that the payer requested. Raises `LimitReached` and as `Session.manage` does.
        """
        channel = yield from self._channels.refresh((yield from self._pick(channel_id)))
        if channel.status not in {"open", "leaving"}:
            raise ChannelUnavailable(f"channel {channel.channel_id} is {channel.status}")
        if amount <= 0:
            raise ChannelUnavailable("add more than nothing")
        self.wallet.limits.check_deposit(channel.deposit + amount)
        payment = yield from self._payment(channel)
        offer = payment.offer
        if offer is None:
            raise ChannelUnavailable("there is no challenge to answer")
        payload = yield from self._channels.funding(offer, channel, amount)
        yield from self._session.manage(payment, payload)
        found = yield from self._channels.refresh(channel)
        if found.deposit < channel.deposit + amount:
            raise ServerMisbehaved("the server took a top-up, but the chain does not show it")
        return found

    def request_close(self, channel_id: str | None = None) -> Flow[str]:
        """Ask the chain for the money back, without the server: the transaction's hash.

        The server has the escrow's grace period to take what it is owed; then `withdraw`. Raises `ChainError`.
        """
        channel = yield from self._pick(channel_id)
        tx_hash = yield from self._leave(channel, "requestClose")
        name = channel.channel_id
        yield from work(lambda: self.wallet.store.set_status(name, "leaving"))
        return tx_hash

    def withdraw(self, channel_id: str | None = None) -> Flow[str]:
        """Take back what the server did not, after `request_close` and the grace period: the transaction's hash.

        Raises `ChannelUnavailable`, saying how long to wait still, and `ChainError`.
        """
        channel = yield from self._pick(channel_id)
        name, node = channel.channel_id, self.wallet.node(channel.parts.chain_id)
        state = yield from self._channels.state(channel.parts)
        if state is None or state.finalized:
            yield from work(lambda: self.wallet.store.set_status(name, "closed"))
            raise ChannelUnavailable(f"channel {name} is over: nothing is left in it")
        if not state.close_requested_at:
            raise ChannelUnavailable(f"ask for a close of channel {name} first (farebox-client request-close {name})")
        ready = state.close_requested_at + (yield from node.grace_s(channel.parts))
        now = yield from node.now()
        # Some blocks may pass before ours; the chain's clock decides.
        if now < ready and self.wallet.clock() < ready:
            raise ChannelUnavailable(
                f"channel {name} can be withdrawn in {ready - now} seconds: until then the server may take its due"
            )
        tx_hash = yield from self._leave(channel, "withdraw")
        yield from work(lambda: self.wallet.store.set_status(name, "closed", close_tx=tx_hash))
        return tx_hash

    def _leave(self, channel: Channel, function: str) -> Flow[str]:
        parts, wallet = channel.parts, self.wallet
        if parts.chain_id not in wallet.trust.rpc_urls:
            raise ChainError(f"there is no node for chain {parts.chain_id}: name one in Trust.rpc_urls")
        if parts.kind == "evm":
            return (yield from wallet.evm(parts.chain_id).leave(parts, function=function))
        now = int(wallet.clock())
        return (yield from wallet.tempo(parts.chain_id).leave(parts, function=function, now=now))

    # A channel and a challenge for it.

    def _pick(self, channel_id: str | None) -> Flow[Channel]:
        found = yield from self.channels()
        if channel_id is not None:
            wanted = channel_id.lower()
            matches = [channel for channel in found if channel.channel_id.startswith(wanted)]
        else:
            matches = [channel for channel in found if channel.status in {"opening", "open", "leaving"}]
        if not matches:
            named = f" {channel_id}" if channel_id else ""
            raise ChannelUnavailable(f"wallet {self.wallet.address} has no channel{named} in {self.wallet.store.path}")
        if len(matches) > 1:
            names = ", ".join(f"{each.channel_id} ({each.origin}, {show(each.remaining)} USD)" for each in matches)
            raise ChannelUnavailable(f"name one of several channels: {names}")
        return matches[0]

    def _payment(self, channel: Channel) -> Flow[Payment]:
        """A request without a body for the channel, with the newest challenge there is."""
        request = httpx.Request("POST", channel.url, extensions={"timeout": TIMEOUT.as_dict()})
        payment = begin(request, b"")
        payment.channel = channel
        payment.offer = (yield from self._fresh(payment, channel)) or _kept(channel)
        if payment.offer is None:
            raise ChannelUnavailable(f"{channel.origin} gives no challenge for channel {channel.channel_id}")
        return payment

    def _fresh(self, payment: Payment, channel: Channel) -> Flow[Offer | None]:
        """A challenge from a request without credential or body: "TopUp Payload" has HEAD, older servers POST alone."""
        headers = {**payment.headers, "payment-session": channel.channel_id}
        for method in ("HEAD", "POST"):
            request = httpx.Request(method, payment.url, headers=headers, extensions=payment.extensions)
            response = yield from send(request)
            yield from read(response)
            for offer in read_offers(response.headers.get_list("www-authenticate")):
                if offer.serves(channel.parts):
                    return offer
        return None


def _kept(channel: Channel) -> Offer | None:
    try:
        return read_offer(channel.challenge)
    except (ParseError, ValueError):
        return None
