"""How payments are written once for both transports: as generators that ask for effects.

A flow yields what it wants done (send this, wait, run this) and is sent the result, or has the error thrown
into it. `run` does it by blocking and `run_async` by awaiting; no decision is made in either.
"""

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from farebox_client.errors import PaymentError, ServerMisbehaved

T = TypeVar("T")
Flow = Generator["Effect", Any, T]

# Problem documents and answers of nodes are small; neither may fill memory.
BODY_BYTES_MAX = 2**20


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the server; the result is a response whose body is not read yet."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Ask:
    """Send to a node; the result is the body of its answer."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Read:
    """Read a small body and give the connection back."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class Drop:
    """Give a connection back whose body nobody wants."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Run something that blocks for a moment, such as a commit to disk."""

    call: Callable[[], Any]


Effect = Send | Ask | Read | Drop | Pause | Work


def send(request: httpx.Request) -> Flow[httpx.Response]:
    """Send to the server. Raises `httpx.TransportError`."""
    response: httpx.Response = yield Send(request)
    return response


def ask(request: httpx.Request) -> Flow[bytes]:
    """Ask a node. Raises `httpx.TransportError`."""
    body: bytes = yield Ask(request)
    return body


def read(response: httpx.Response) -> Flow[bytes]:
    """A response's whole body. Raises `ServerMisbehaved` where it is too large."""
    body: bytes = yield Read(response)
    return body


def drop(response: httpx.Response) -> Flow[None]:
    """Close a response that may never end."""
    yield Drop(response)


def pause(seconds: float) -> Flow[None]:
    """Wait."""
    yield Pause(seconds)


def work(call: Callable[[], T]) -> Flow[T]:
    """The result of ``call``, which may block for a moment."""
    result: T = yield Work(call)
    return result


def run(flow: Flow[T], transport: httpx.BaseTransport, node: httpx.BaseTransport) -> T:
    """Run a flow by blocking."""

    def perform(effect: Effect) -> Any:
        match effect:
            case Send(request):
                return transport.handle_request(request)
            case Ask(request):
                return _read(node.handle_request(request))
            case Read(response):
                return _read(response)
            case Drop(response):
                response.close()
                return None
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Work(call):
                return call()

    step = _sender(flow, None)
    try:
        while True:
            try:
                effect = step()
            except StopIteration as done:
                result: T = done.value
                return result
            try:
                value = perform(effect)
            except (httpx.HTTPError, PaymentError, OSError) as error:
                step = _thrower(flow, error)
            else:
                step = _sender(flow, value)
    finally:
        flow.close()


async def run_async(flow: Flow[T], transport: httpx.AsyncBaseTransport, node: httpx.AsyncBaseTransport) -> T:
    """Run a flow by awaiting. A cancellation ends the flow where it stands."""

    async def perform(effect: Effect) -> Any:
        match effect:
            case Send(request):
                return await transport.handle_async_request(request)
            case Ask(request):
                return await _read_async(await node.handle_async_request(request))
            case Read(response):
                return await _read_async(response)
            case Drop(response):
                await response.aclose()
                return None
            case Pause(seconds):
                await anyio.sleep(seconds)
                return None
            case Work(call):
                return await anyio.to_thread.run_sync(call)

    step = _sender(flow, None)
    try:
        while True:
            try:
                effect = step()
            except StopIteration as done:
                result: T = done.value
                return result
            try:
                value = await perform(effect)
            except (httpx.HTTPError, PaymentError, OSError) as error:
                step = _thrower(flow, error)
            else:
                step = _sender(flow, value)
    finally:
        flow.close()


def _sender(flow: Flow[T], value: Any) -> Callable[[], Effect]:
    return lambda: flow.send(value)


def _thrower(flow: Flow[T], error: Exception) -> Callable[[], Effect]:
    return lambda: flow.throw(error)


def _grown(body: bytearray, chunk: bytes) -> None:
    body += chunk
    if len(body) > BODY_BYTES_MAX:
        raise ServerMisbehaved(f"a problem document or answer has more than {BODY_BYTES_MAX} bytes")


def chunks(response: httpx.Response) -> Iterator[bytes]:
    """A body as it comes, also one that a transport of the caller's has read already."""
    return iter((response.content,)) if _read_already(response) else response.iter_raw()


async def chunks_async(response: httpx.Response) -> AsyncIterator[bytes]:
    """`chunks`, awaited."""
    if _read_already(response):
        yield response.content
        return
    async for chunk in response.aiter_raw():
        yield chunk


def _read_already(response: httpx.Response) -> bool:
    # Made with its content, and not by a transport that reads a socket.
    return isinstance(response.stream, httpx.ByteStream)


def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        for chunk in chunks(response):
            _grown(body, chunk)
    finally:
        response.close()
    return bytes(body)


async def _read_async(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        async for chunk in chunks_async(response):
            _grown(body, chunk)
    finally:
        await response.aclose()
    return bytes(body)
