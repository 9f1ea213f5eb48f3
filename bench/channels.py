"""Payment channels, measured: `python -m bench.channels`, which `make bench` runs after the table.

One server of ours on SQLite with full fsync and one worker, on a core of its own; the wallets, the upstream and a
local chain share the rest. Channels are opened on the chain before anything is timed, and everything that a wallet
signs is signed before: what is measured is the server. Every number is the median of its rounds.

    vouchers/s                vouchers accepted and persisted over HTTP, each a commit's part
    voucher to resumed bytes  from the voucher's request to the first bytes of the stream that waited for it
    streams, channel / key    the same 100-token streams, the same client, paid by vouchers and by an API key
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson

from app.devnet import Devnet, DevnetThread
from bench import contestants
from bench.processes import Cores, free_port, split_cores
from bench.wire import MODEL, PATH, request_body
from tests.serving import FareboxServer, model, sandbox, upstream
from tests.sessions import PayingWallet, paid_server

CHANNELS = 64
DEPOSIT = 1_000_000
# What wallets have signed ahead when streams are timed: none of them pauses.
AHEAD = DEPOSIT // 2
VOUCHERS_EACH = 50
STREAMS = 1200
CONNECTIONS = 32
PAUSES = 200
STEP = 10
RESULTS = Path(__file__).resolve().parent / "results-channels.json"
TARGETS = {"vouchers_per_s": 1500.0, "resumed_p99_ms": 20.0, "streams_ratio": 0.8}
# A stream that asks for a voucher every few tokens.
TALK = {"model": "talk", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 400}


@dataclass
class Bench:
    """A running server, its wallets with open channels, and a key."""

    server: FareboxServer
    wallets: Sequence[PayingWallet]
    key: str

    @property
    def url(self) -> str:
        return self.server.url + PATH


def authorization(wallet: PayingWallet, challenge: object, amount: int) -> str:
    """A voucher of ``amount`` in all, signed for a challenge."""
    wallet.cumulative = max(wallet.cumulative, amount)
    return wallet.credential(challenge, wallet.voucher_payload(amount))  # type: ignore[arg-type]


async def vouchers_per_s(bench: Bench) -> float:
    """Every wallet sends its vouchers, one after the other; all wallets at once."""
    work = []
    for wallet in bench.wallets:
        challenge = wallet.challenge(b"")
        first = wallet.cumulative
        work.append([authorization(wallet, challenge, first + STEP * n) for n in range(1, VOUCHERS_EACH + 1)])
    async with session() as client:

        async def send(mine: list[str]) -> None:
            for value in mine:
                async with client.post(bench.url, headers={"authorization": value}) as answer:
                    await answer.read()
                    must(answer.status == 200, f"a voucher was answered {answer.status}")

        began = time.perf_counter()
        await asyncio.gather(*map(send, work))
        return len(work) * VOUCHERS_EACH / (time.perf_counter() - began)


async def resumed_ms(bench: Bench) -> list[float]:
    """Milliseconds from sending a voucher to the next bytes of the stream that waited for it."""
    wallet = bench.wallets[0]
    found: list[float] = []
    body = orjson.dumps(TALK)
    async with session() as client:
        while len(found) < PAUSES:
            challenge = wallet.challenge(body)
            headers = {
                "authorization": authorization(wallet, challenge, wallet.cumulative + 1),
                "content-type": "application/json",
            }
            async with client.post(bench.url, data=body, headers=headers) as stream:
                sent = 0.0
                async for line in stream.content:
                    if sent and line.startswith(b"data: {"):
                        found.append((time.perf_counter() - sent) * 1000)
                        sent = 0.0
                    if line.startswith(b"data: ") and b"requiredCumulative" in line:
                        required = int(orjson.loads(line[6:])["requiredCumulative"])
                        value = authorization(wallet, challenge, required)
                        sent = time.perf_counter()
                        async with client.post(bench.url, headers={"authorization": value}) as answer:
                            must(answer.status == 200, await answer.text())
    return found


async def streams_per_s(bench: Bench, *, paid_by: str) -> float:
    """The same streams, paid by key or by channel; ``ask`` counts the unpaid request before each too."""
    body = request_body(model=MODEL, stream=True)
    json_type = {"content-type": "application/json"}
    heads: list[dict[str, str]] = []
    if paid_by == "key":
        heads = [{"authorization": f"Bearer {bench.key}"}] * STREAMS
    else:
        for number in range(STREAMS):
            wallet = bench.wallets[number % len(bench.wallets)]
            # Far enough ahead that no stream pauses.
            amount = max(wallet.cumulative, AHEAD) + 1
            heads.append({"authorization": authorization(wallet, wallet.challenge(body), amount)})
    left = iter(heads)
    async with session() as client:

        async def work() -> None:
            for head in left:
                if paid_by == "ask":
                    async with client.post(bench.url, data=body, headers=json_type) as unpaid:
                        await unpaid.read()
                        must(unpaid.status == 402, "the unpaid request was served")
                async with client.post(bench.url, data=body, headers=json_type | head) as answer:
                    text = await answer.read()
                    must(answer.status == 200 and text.rstrip().endswith(b"[DONE]"), text[-300:].decode())

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
        return STREAMS / (time.perf_counter() - began)


def session() -> aiohttp.ClientSession:
    """A client without limits of its own."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def must(condition: bool, message: str) -> None:
    """A wrong answer makes the speed meaningless."""
    if not condition:
        raise SystemExit(f"bench: {message}")


def prepare(stack: ExitStack, folder: Path, cores: Cores) -> Bench:
    """Start everything and open the channels."""
    chain = stack.enter_context(DevnetThread(Devnet()))
    source = contestants.upstream(port=free_port(), cores=cores, paced_tokens=1, scratch=folder)
    process = source.launch()
    stack.callback(process.stop)
    cheap = {"input": "0.10", "output": "0.15"}
    server = paid_server(
        folder,
        chain,
        database_url=f"sqlite:///{folder / 'farebox.db'}",
        backends=("tempo-v2",),
        mpp={"vouchers_per_second": 1_000_000, "challenge_ttl_s": 3600, "exposure_max": "1000.00", "watch_every_s": 2},
        ledger={"window_tokens_min": 16, "window_growth": 1, "heartbeat_s": 5, "lease_ttl_s": 30},
        providers=[
            upstream("bench", f"{source.url}/v1", [model(MODEL, price=cheap)]),
            sandbox("talk", models=[model("talk")]),
        ],
    )
    stack.enter_context(server)
    if server.process is not None:
        os.sched_setaffinity(server.process.pid, cores.server)
    wallets = []
    for number in range(CHANNELS):
        wallet = PayingWallet.on(server, chain)
        stack.enter_context(wallet.http)
        answer = wallet.open(DEPOSIT * 20 if number == 0 else DEPOSIT)
        must(answer.status_code == 200, answer.text)
        wallets.append(wallet)
    return Bench(server, wallets, server.payer("1000.00").key)


async def rounds(count: int, measure: Callable[[], Awaitable[float]]) -> float:
    """The median."""
    return statistics.median([await measure() for _ in range(count)])


async def measure(bench: Bench, count: int) -> dict[str, float]:
    """Everything, in one run."""
    say(f"{len(bench.wallets)} channels are open; about {30 * count} s under load")
    resumed = sorted(await resumed_ms(bench))
    say("vouchers")
    vouchers = await rounds(count, lambda: vouchers_per_s(bench))
    found: dict[str, list[float]] = {"key": [], "channel": [], "ask": []}
    for number in range(count):
        for kind, values in found.items():
            say(f"streams paid by {kind}, round {number + 1}")
            values.append(await streams_per_s(bench, paid_by=kind))
    key, channel, ask = (statistics.median(values) for values in found.values())
    return {
        "vouchers_per_s": vouchers,
        "resumed_p50_ms": resumed[len(resumed) // 2],
        "resumed_p99_ms": resumed[int(len(resumed) * 0.99)],
        "streams_per_s_key": key,
        "streams_per_s_channel": channel,
        "streams_per_s_channel_with_the_unpaid_ask": ask,
        "streams_ratio": statistics.median(c / k for c, k in zip(found["channel"], found["key"], strict=True)),
        "streams_ratio_with_the_unpaid_ask": statistics.median(
            c / k for c, k in zip(found["ask"], found["key"], strict=True)
        ),
    }


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


def main() -> int:
    """0: measured and the books are green, whether or not the targets were met."""
    parser = argparse.ArgumentParser(prog="python -m bench.channels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (3)")
    arguments = parser.parse_args()
    cores = split_cores()
    with tempfile.TemporaryDirectory(prefix="bench-channels-") as name, ExitStack() as stack:
        os.sched_setaffinity(0, cores.load)
        bench = prepare(stack, Path(name), cores)
        results = asyncio.run(measure(bench, arguments.rounds))
        bench.server.wait_settled()
        bench.server.assert_green()
    for field, value in results.items():
        target = TARGETS.get(field)
        good = target is None or (value <= target if field.endswith("_ms") else value >= target)
        verdict = "" if target is None else f"  {'met' if good else 'NOT MET'} (target {target:g})"
        sys.stdout.write(f"{field:45} {value:10.2f}{verdict}\n")
    RESULTS.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
