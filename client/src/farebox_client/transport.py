"""httpx transports that pay: what an SDK is given, and nothing else about it changes.

client = OpenAI(api_key="wallet", base_url=..., http_client=httpx.Client(transport=PayingTransport(wallet)))
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx

from farebox_client.channel import Channel
from farebox_client.errors import PaymentError
from farebox_client.flow import Flow, T, chunks, chunks_async, run, run_async
from farebox_client.manage import Balance, Management
from farebox_client.payment import Payment, begin
from farebox_client.receipt import Receipt
from farebox_client.session import Session
from farebox_client.sse import EventFilter, PaymentEvent
from farebox_client.wallet import Wallet

EVENT_STREAM = "text/event-stream"


class PayingTransport(httpx.BaseTransport):
    """Pays for what is sent through it, blocking.

    ``transport`` carries requests to servers (httpx's own by default; it must allow two connections to one
    host, as vouchers pass a stream that waits), ``node`` those to chains' nodes. A payment that is not made
    is answered with a 402 of our own that says why, which SDKs show and do not retry; with ``raises`` it
    is a `PaymentError` instead. Within a stream it is always an exception, as there is no status left to send.
    """

    def __init__(
        self,
        wallet: Wallet,
        *,
        transport: httpx.BaseTransport | None = None,
        node: httpx.BaseTransport | None = None,
        raises: bool = False,
    ) -> None:
        self.wallet = wallet
        self._session = Session(wallet)
        self._management = Management(self._session)
        # Reading all certificates takes longer than a payment: once is enough.
        tls = httpx.create_ssl_context()
        self._transport = transport or httpx.HTTPTransport(verify=tls)
        self._node = node or httpx.HTTPTransport(verify=tls)
        self._raises = raises

    def run(self, flow: Flow[T]) -> T:
        """Run one of our flows over this transport."""
        return run(flow, self._transport, self._node)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and pay for it."""
        payment = begin(request, request.read())
        try:
            response = self.run(self._session.pay(payment))
        except PaymentError as error:
            if self._raises:
                raise
            return _refusal(error)
        return _stripped(response, _Stream(self, self._session, payment, response)) if _streams(response) else response

    def close(self) -> None:
        """Close connections. Channels stay open: see `close_channel`."""
        self._transport.close()
        self._node.close()

    # What a payer does beside requests; `Management` says what each raises.

    def channels(self) -> Sequence[Channel]:
        """All channels of the wallet, newest first."""
        return self.run(self._management.channels())

    def balance(self, channel_id: str | None = None) -> Balance:
        """A channel's money as the chain has it now."""
        return self.run(self._management.balance(channel_id))

    def close_channel(self, channel_id: str | None = None) -> Receipt:
        """Have the server close a channel: a receipt with ``tx_hash``."""
        return self.run(self._management.close(channel_id))

    def top_up(self, amount: int, channel_id: str | None = None) -> Channel:
        """Add ``amount`` base units to a deposit."""
        return self.run(self._management.top_up(amount, channel_id))

    def request_close(self, channel_id: str | None = None) -> str:
        """Ask the chain for the money back, without the server: a transaction's hash."""
        return self.run(self._management.request_close(channel_id))

    def withdraw(self, channel_id: str | None = None) -> str:
        """Take the money back after `request_close` and the grace period: a transaction's hash."""
        return self.run(self._management.withdraw(channel_id))


class AsyncPayingTransport(httpx.AsyncBaseTransport):
    """`PayingTransport` for asyncio and trio."""

    def __init__(
        self,
        wallet: Wallet,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        node: httpx.AsyncBaseTransport | None = None,
        raises: bool = False,
    ) -> None:
        self.wallet = wallet
        self._session = Session(wallet)
        self._management = Management(self._session)
        tls = httpx.create_ssl_context()
        self._transport = transport or httpx.AsyncHTTPTransport(verify=tls)
        self._node = node or httpx.AsyncHTTPTransport(verify=tls)
        self._raises = raises

    async def run(self, flow: Flow[T]) -> T:
        """Run one of our flows over this transport."""
        return await run_async(flow, self._transport, self._node)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and pay for it."""
        payment = begin(request, await request.aread())
        try:
            response = await self.run(self._session.pay(payment))
        except PaymentError as error:
            if self._raises:
                raise
            return _refusal(error)
        if not _streams(response):
            return response
        return _stripped(response, _AsyncStream(self, self._session, payment, response))

    async def aclose(self) -> None:
        """Close connections. Channels stay open: see `close_channel`."""
        await self._transport.aclose()
        await self._node.aclose()

    async def channels(self) -> Sequence[Channel]:
        """All channels of the wallet, newest first."""
        return await self.run(self._management.channels())

    async def balance(self, channel_id: str | None = None) -> Balance:
        """A channel's money as the chain has it now."""
        return await self.run(self._management.balance(channel_id))

    async def close_channel(self, channel_id: str | None = None) -> Receipt:
        """Have the server close a channel: a receipt with ``tx_hash``."""
        return await self.run(self._management.close(channel_id))

    async def top_up(self, amount: int, channel_id: str | None = None) -> Channel:
        """Add ``amount`` base units to a deposit."""
        return await self.run(self._management.top_up(amount, channel_id))

    async def request_close(self, channel_id: str | None = None) -> str:
        """Ask the chain for the money back, without the server: a transaction's hash."""
        return await self.run(self._management.request_close(channel_id))

    async def withdraw(self, channel_id: str | None = None) -> str:
        """Take the money back after `request_close` and the grace period: a transaction's hash."""
        return await self.run(self._management.withdraw(channel_id))


class _Stream(httpx.SyncByteStream):
    """An event stream without its payment events, which are answered while it is read."""

    def __init__(self, transport: PayingTransport, session: Session, payment: Payment, source: httpx.Response) -> None:
        self._transport, self._session, self._payment, self._source = transport, session, payment, source
        self._begun = False

    def __iter__(self) -> Iterator[bytes]:
        # SDKs drain what they have read; a payment event must not be answered for that.
        if self._begun:
            raise httpx.StreamConsumed
        self._begun = True
        events = EventFilter()
        for data in chunks(self._source):
            for item in events.feed(data):
                if isinstance(item, PaymentEvent):
                    self._transport.run(self._session.on_event(self._payment, item))
                else:
                    yield item
        if rest := events.finish():
            yield rest

    def close(self) -> None:
        self._source.close()


class _AsyncStream(httpx.AsyncByteStream):
    """`_Stream`, awaited."""

    def __init__(
        self, transport: AsyncPayingTransport, session: Session, payment: Payment, source: httpx.Response
    ) -> None:
        self._transport, self._session, self._payment, self._source = transport, session, payment, source
        self._begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._begun:
            raise httpx.StreamConsumed
        self._begun = True
        events = EventFilter()
        async for data in chunks_async(self._source):
            for item in events.feed(data):
                if isinstance(item, PaymentEvent):
                    await self._transport.run(self._session.on_event(self._payment, item))
                else:
                    yield item
        if rest := events.finish():
            yield rest

    async def aclose(self) -> None:
        await self._source.aclose()


def _streams(response: httpx.Response) -> bool:
    kind: str = response.headers.get("content-type", "")
    return response.is_success and kind.partition(";")[0].strip().lower() == EVENT_STREAM


def _stripped(response: httpx.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.Response:
    headers = httpx.Headers(response.headers)
    headers.pop("content-length", None)
    return httpx.Response(response.status_code, headers=headers, stream=stream, extensions=response.extensions)


def _refusal(error: PaymentError) -> httpx.Response:
    """A 402 of our own: an RFC 9457 document that is also the error object that OpenAI's SDKs show."""
    message = str(error)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": "Not paid by this wallet",
        "status": 402,
        "detail": message,
        "error": {"message": message, "type": "wallet_refused", "code": error.code, "param": None},
    }
    headers = {"content-type": "application/problem+json", "x-should-retry": "false"}
    return httpx.Response(
        402, headers=headers, content=json.dumps(body).encode(), extensions={"farebox_client_error": error}
    )
