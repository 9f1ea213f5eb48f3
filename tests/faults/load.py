"""Mixed load, drawn from a seed: what clients do to a server that is about to be killed.

Every request of a payer with money has an output limit of its own, which its row in the database keeps:
that is how a request is found whose client never saw its id.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.wire import Exchange, Seen, chat
from tests.serving import FareboxServer, Payer, model, sandbox

# No script asks for more tokens than the least limit.
TOKENS_MAX = 900
MARK = 1_000
CLIENTS = 16
POOR_AT_ONCE = 2
PROVIDERS = [
    sandbox(name, models=[model("sandbox/echo", aliases=["sandbox"])], first_token_ms=2) for name in ("first", "second")
]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as a client plans it."""

    number: int
    payer: Payer
    body: dict[str, Any]
    key: str | None = None
    # The client leaves after so much text, or so long.
    leaves_after_bytes: int | None = None
    leaves_after_s: float | None = None

    @property
    def mark(self) -> int | None:
        """The output limit that nothing else has."""
        limit: int | None = self.body.get("max_tokens")
        return limit

    @property
    def prompt_bytes(self) -> int:
        """Bytes of the prompt: no tokenizer makes more tokens of it."""
        return len(self.body["messages"][0]["content"])


@dataclass(frozen=True, slots=True)
class Record:
    """What was asked, and what came of it."""

    ask: Ask
    seen: Seen


@dataclass(slots=True)
class Load:
    """Clients and everything they saw."""

    server: FareboxServer
    random: random.Random
    rich: list[Payer]
    poor: list[Payer] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    keyed: dict[str, Ask] = field(default_factory=dict)
    asked: int = 0

    @classmethod
    def on(cls, server: FareboxServer, seed: int) -> "Load":
        """Load on one server: payers with ample money and payers whose money runs out."""
        rich = [server.payer("100000.00") for _ in range(3)]
        return cls(server, random.Random(seed), rich)

    async def until(self, stop: asyncio.Event) -> None:
        """Clients that ask again and again until ``stop``, and finish what they began.

        Each time there are new payers whose money runs out while several streams spend it.
        """
        self.poor += [self.server.payer("0.006") for _ in range(POOR_AT_ONCE)]
        await asyncio.gather(*(self._client(stop) for _ in range(CLIENTS)))

    async def again(self) -> list[Record]:
        """Every request with an idempotency key once more, by a client that stays."""
        room = asyncio.Semaphore(CLIENTS)

        async def repeat(ask: Ask) -> Record:
            async with room:
                return Record(ask, await _perform(self.server.port, ask, stays=True))

        repeated = await asyncio.gather(*map(repeat, self.keyed.values()))
        self.records += repeated
        return repeated

    async def _client(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            ask = self._draw()
            record = Record(ask, await _perform(self.server.port, ask))
            self.records.append(record)
            if record.seen.status is None:
                # Only a server that is gone refuses connections: the round is over.
                return

    def _draw(self) -> Ask:
        if self.keyed and self.random.random() < 0.06:
            return self.random.choice(list(self.keyed.values()))
        self.asked += 1
        draw = self.random.choice(DRAWS)
        ask = draw(self)
        if ask.key is not None:
            self.keyed[ask.key] = ask
        return ask

    def ask(self, script: str, *, stream: bool, payer: Payer | None = None, **leaves: Any) -> Ask:
        """An ask of the next number."""
        keyed = self.random.random() < 0.4
        key = f"key-{self.asked}" if keyed else None
        choices = self.random.choice((1, 1, 1, 2, 3))
        more = {"n": choices} if choices > 1 else {}
        if payer is not None:
            return Ask(self.asked, payer, chat(script, stream=stream, **more), None, **leaves)
        body = chat(script, stream=stream, max_tokens=MARK + self.asked, **more)
        return Ask(self.asked, self.random.choice(self.rich), body, key, **leaves)


def _quick(load: Load) -> Ask:
    return load.ask(f"tokens={load.random.randint(0, 300)}", stream=load.random.random() < 0.5)


def _slow_stream(load: Load) -> Ask:
    tokens, pace = load.random.randint(200, TOKENS_MAX), load.random.randint(200, 900)
    usage = load.random.choice(("chunk", "beside", "cumulative"))
    return load.ask(f"tokens={tokens} tps={pace} usage={usage}", stream=True)


def _slow_whole(load: Load) -> Ask:
    leaves_after_s = load.random.uniform(0.02, 0.2) if load.random.random() < 0.3 else None
    script = f"tokens={load.random.randint(20, 300)} tps={load.random.randint(300, 900)}"
    return load.ask(script, stream=False, leaves_after_s=leaves_after_s)


def _failing(load: Load) -> Ask:
    tokens = load.random.randint(100, 400)
    fault = load.random.choice(
        (
            "fail=status:503",
            "fail=status:429 times=1",
            "fail=status:503 at=first",
            "fail=connect times=2",
            f"fail=cut after={tokens // 2}",
            f"fail=error_event after={tokens // 3} tps=600",
            "fail=timeout",
            "fail=status:400",
        )
    )
    return load.ask(f"tokens={tokens} {fault}", stream=load.random.random() < 0.6)


def _leaving(load: Load) -> Ask:
    tokens = load.random.randint(200, TOKENS_MAX)
    script = f"tokens={tokens} tps={load.random.randint(300, 900)} first_ms={load.random.choice((0, 0, 100))}"
    if load.random.random() < 0.3:
        return load.ask(script, stream=True, leaves_after_s=load.random.uniform(0, 0.15))
    return load.ask(script, stream=True, leaves_after_bytes=load.random.randint(1, 4 * tokens))


def _poor(load: Load) -> Ask:
    script = f"tokens={load.random.randint(400, TOKENS_MAX)} tps={load.random.choice((1500, 4000))}"
    return load.ask(script, stream=load.random.random() < 0.8, payer=load.random.choice(load.poor[-POOR_AT_ONCE:]))


DRAWS = (
    *(_quick, _quick, _slow_stream, _slow_stream, _slow_stream, _slow_whole),
    *(_failing, _failing, _leaving, _poor, _poor),
)


async def _perform(port: int, ask: Ask, *, stays: bool = False) -> Seen:
    try:
        exchange = await Exchange.send(port, ask.payer, ask.body, key=ask.key)
    except OSError:
        return Seen(stream=bool(ask.body.get("stream")))
    if stays or (ask.leaves_after_bytes is None and ask.leaves_after_s is None):
        return await exchange.finish()
    try:
        async with asyncio.timeout(ask.leaves_after_s):
            await _read_until(exchange, lambda seen: len(seen.body) >= (ask.leaves_after_bytes or 2**30))
    except TimeoutError:
        pass
    except (OSError, asyncio.IncompleteReadError):
        await exchange.leave(quietly=True)
        return exchange.seen
    await exchange.leave()
    return exchange.seen


async def _read_until(exchange: Exchange, enough: Callable[[Seen], bool]) -> None:
    async for seen in exchange.reads():
        if enough(seen):
            return
