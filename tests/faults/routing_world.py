"""A serving process without its sockets: the real paid job, router, delivery and journal over scripted providers.

`World` performs what a client asks and keeps what the client saw; what must be true of it afterwards is
`tests/faults/test_routing_money.py`.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson
from sqlalchemy import Engine, func, select

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.paid_routes import PAID
from app.delivery import EVENT_STREAM
from app.errors import FareboxError
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.ledger.price_store import PriceStore
from app.pricing.price_book import PriceVersion
from app.provider_settings import ProviderSettings
from app.proxy import PaidJob, Proxy
from app.rails.rail import Payer
from app.routing.candidates import Candidate, Catalog
from app.routing.router import Router
from app.settings import InferenceSettings, LedgerSettings, Settings
from app.tables import holds
from tests.clocks import START_MS, FakeClock
from tests.faults.scripted_providers import Act, ScriptedProvider, Stage
from tests.ledger.seeds import add_customer, add_key
from tests.serving import model, sandbox

PROVIDERS = {"a": "native", "b": "native", "c": "quota", "d": "external"}
OUTPUT_MAX = 64
CONTEXT = 4096
ATTEMPTS_MAX = 3
RICH = 10**12
SIZE = "256x256"
CLOSE_S_MAX = 10
COMMENT = b": farebox\n\n"
SETTINGS = Settings(
    inference=InferenceSettings(breaker_requests_min=2, attempts_max=ATTEMPTS_MAX),
    ledger=LedgerSettings(window_tokens_min=8, window_growth=2),
)
PATHS = {
    "chat": "/v1/chat/completions",
    "stream": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
    "images": "/v1/images/generations",
    "speech": "/v1/audio/speech",
}


def prices(name: str, *, share: int = 1) -> dict[str, Any]:
    """What a provider charges, as an operator writes it: no amount of one can be taken for another's."""
    number = list(PROVIDERS).index(name) + 1
    return {
        "input": f"{share}.0{number}",
        "output": f"{share + 2 * number}.1{number}",
        "per_image": {SIZE: f"0.00{share}{number}"},
        "per_character": f"0.00000{share}{number}",
    }


def _models(name: str) -> list[dict[str, Any]]:
    able = {"chats": ["chat"], "embeds": ["embeddings"], "paints": ["images"], "speaks": ["speech"]}
    sold = {"price": prices(name), "cost": prices(name, share=0), "context_window": CONTEXT}
    return [
        model(each, capabilities=what, upstream_id=f"{name}-{each}", max_output_tokens=OUTPUT_MAX, **sold)
        for each, what in able.items()
    ]


CONFIGURED = [
    ProviderSettings.model_validate(sandbox(name, kind=kind, models=_models(name))) for name, kind in PROVIDERS.items()
]


def price_book(engine: Engine) -> dict[tuple[str, str], PriceVersion]:
    """The prices, as a serving process makes sure of them at its start."""
    return PriceStore(engine, FakeClock()).sync(CONFIGURED)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one client asks, how long it stays, and what the attempts for it meet.

    It leaves at its ``leaves_at``th message, or after so many ``turns`` of the loop. With ``again``, what was
    first asked with the same ``key`` is asked once more, whatever else stands here.
    """

    kind: str = "stream"
    words: int = 3
    n: int = 1
    max_tokens: int | None = None
    routing: str | None = None
    order: tuple[str, ...] = ()
    falls_back: bool = True
    only: str | None = None
    rich: bool = True
    key: int | None = None
    again: bool = True
    leaves_at: int | None = None
    turns: int | None = None
    slow_ms: int = 0
    acts: tuple[Act, ...] = ()

    @property
    def text(self) -> str:
        return "fare " * self.words

    def body(self) -> dict[str, Any]:
        """The JSON of its request."""
        wishes = {"order": list(self.order), "allow_fallbacks": self.falls_back}
        routing: dict[str, Any] = {"provider": wishes | ({"only": [self.only]} if self.only else {})}
        if self.routing is not None:
            routing["routing_strategy"] = self.routing
        match self.kind:
            case "embeddings":
                return {"model": "embeds", "input": self.text, **routing}
            case "images":
                return {"model": "paints", "prompt": self.text, "n": self.n, "size": SIZE, **routing}
            case "speech":
                return {"model": "speaks", "input": self.text, "voice": "alto", **routing}
            case _:
                said = {"model": "chats", "messages": [{"role": "user", "content": self.text}], "n": self.n}
                limit = {"max_tokens": self.max_tokens} if self.max_tokens else {}
                return {**said, **limit, "stream": self.kind == "stream", **routing}


@dataclass
class Reader:
    """A client over no connection: it keeps what it is sent, and may leave."""

    leaves_at: int | None
    slow_ms: int
    clock: FakeClock
    job: PaidJob | None = None
    started: bool = False
    messages: int = 0
    left: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = ""
    body: bytes = b""
    ended: bool = False
    # How long others waited for it to take what it was sent.
    waited_s: float = 0.0

    async def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.started = True
        self.status, self.headers, self.body, self.ended = status, dict(headers), body, True
        self.media_type = self.headers["content-type"]
        await self._message()

    async def begin(self, headers: list[tuple[str, str]], *, media_type: str = EVENT_STREAM) -> None:
        self.started = True
        assert self.status is None
        self.status, self.headers, self.media_type = 200, dict(headers), media_type
        await self._message()

    async def send(self, data: bytes) -> None:
        assert self.started
        assert not self.ended
        self.body += data
        since_s = self.clock.monotonic_s()
        try:
            await self._message()
        finally:
            self.waited_s += self.clock.monotonic_s() - since_s

    async def end(self) -> None:
        assert not self.ended
        self.ended = True
        await self._message()

    def leave(self) -> None:
        """The connection is closed: the edge tells the job."""
        self.left = True
        if self.job is not None and not (self.job.task and self.job.task.done()):
            self.job.stop("client gone")

    async def _message(self) -> None:
        self.messages += 1
        self.clock.advance(self.slow_ms)
        if self.messages == self.leaves_at:
            # The edge is another task than the job.
            asyncio.get_running_loop().call_soon(self.leave)
        await asyncio.sleep(0)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, without our comments and the last marker."""
        shown = [part for part in self.body.split(b"\n\n") if part and not part.startswith(b":")]
        return [orjson.loads(part.removeprefix(b"data: ")) for part in shown if part != b"data: [DONE]"]

    @property
    def text_bytes(self) -> int:
        """The text that a stream brought."""
        deltas = [choice.get("delta", {}) for event in self.events for choice in event.get("choices", ())]
        return sum(len((delta.get("content") or "").encode()) for delta in deltas)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one ask."""

    ask: Ask
    id: str
    request: PaidRequest
    account: str
    reader: Reader
    error: FareboxError | None

    @property
    def replayed(self) -> bool:
        return "idempotent-replayed" in self.reader.headers

    @property
    def claims(self) -> tuple[str, int] | None:
        """What its key is the key of."""
        return (self.account, self.ask.key) if self.ask.key is not None else None


class World:
    """One run: a process, two customers (one of them poor), and all that was asked."""

    def __init__(self, engine: Engine, book: dict[tuple[str, str], PriceVersion], *, seed: int, funds: int) -> None:
        self.engine = engine
        self.clock = FakeClock(START_MS)
        self.stage = Stage(self.clock, self._held)
        self.candidates = [
            Candidate(provider, each, book[settings.name, each.id])
            for settings in CONFIGURED
            for provider in (ScriptedProvider(settings.name, settings.kind, self.stage),)
            for each in settings.models
        ]
        self.journal = Journal(JournalStore(engine, self.clock), SETTINGS.ledger)
        self.proxy = Proxy(
            settings=SETTINGS,
            clock=self.clock,
            journal=self.journal,
            catalog=Catalog(self.candidates),
            router=Router(self.clock, Random(seed), SETTINGS.inference),
            search=None,
            owner_id="process",
            pepper=b"pepper",
        )
        self.stage.watch = self.proxy.watch
        self.payers = {True: self._payer("rich", RICH), False: self._payer("poor", funds)}
        self.done: list[Done] = []
        self._first: dict[tuple[str, int], Ask] = {}
        self._reading = engine.connect()

    def _payer(self, name: str, funds: int) -> Payer:
        account = add_customer(self.engine, name, credits=funds)
        add_key(self.engine, f"key-{name}", customer_id=name)
        return Payer(account, name, f"key-{name}", f"hash-of-key-{name}", secret=name)

    def _held(self, request_id: str) -> int:
        """What is durably held for a request, as another connection sees it."""
        statement = select(func.sum(holds.c.amount)).where(holds.c.request_id == request_id)
        found = self._reading.execute(statement).scalar()
        self._reading.rollback()
        return int(found or 0)

    async def all_of(self, asks: Iterable[Ask]) -> None:
        """Perform them at once, to their ends."""
        await asyncio.gather(*(self.perform(ask) for ask in asks))

    async def perform(self, ask: Ask) -> None:
        """Ask as a client does, and stay or leave."""
        payer = self.payers[ask.rich]
        if ask.key is not None:
            first = self._first.setdefault((payer.account_id, ask.key), ask)
            asked = first if ask.again else ask
        else:
            asked = ask
        path = PATHS[asked.kind]
        key = f"key-{ask.key}" if ask.key is not None else None
        content = orjson.dumps(asked.body())
        request = PAID[path].parse(Incoming(path, content, "application/json", SETTINGS, self.proxy.catalog, key))
        reader = Reader(ask.leaves_at, ask.slow_ms, self.clock)
        reader.job = job = self.proxy.job(request, payer, reader)
        self.stage.scripts[job.id] = deque(ask.acts)
        task, error = job.start(), None
        for _ in range(ask.turns or 0):
            await asyncio.sleep(0)
        if ask.turns is not None and not task.done():
            reader.leave()
        try:
            await task
        except FareboxError as refused:
            error = refused
        self.done.append(Done(asked, job.id, request, payer.account_id, reader, error))

    async def stopped_amid(self, asks: Sequence[Ask], *, turns: int) -> None:
        """The process ends while these run."""
        running = asyncio.gather(*(self.perform(ask) for ask in asks))
        for _ in range(turns):
            await asyncio.sleep(0)
        await self.proxy.drain(timeout_s=0)
        await running

    async def close(self) -> None:
        """End the journal's thread."""
        await self.journal.close(timeout_s=CLOSE_S_MAX)
        self._reading.close()
