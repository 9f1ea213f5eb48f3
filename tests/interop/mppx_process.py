"""The published mppx client in a Node.js process of its own, and what it is told to do.

The process imports the package from npm as its users do; see ``mppx/driver.mjs`` for the commands. What
is installed is pinned by ``mppx/package-lock.json`` and kept where the local chain's tools are.
"""

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eth_account import Account

from app.devnet import toolchain
from tests.chain.wallet import new_key
from tests.devnet_fixtures import TempoChain

FOLDER = Path(__file__).parent / "mppx"
ANSWER_TIMEOUT_S = 60
READ_BYTES = 65_536
VALIDATOR_FUNDS = 10_000_000


class MppxFailed(AssertionError):
    """The client threw; the message is its stack."""


def modules() -> Path:
    """The ``node_modules`` with the client in it, installed if need be."""
    return toolchain.install(FOLDER)


@dataclass(frozen=True)
class Call:
    """One HTTP request that the client made, and the credential in it."""

    action: str | None
    channel_id: str | None
    cumulative: int | None
    content: bool
    status: int | None


@dataclass(frozen=True)
class Read:
    """What a stream gave so far."""

    data: list[str]
    receipts: list[dict[str, Any]]
    done: bool
    error: str | None

    @property
    def text(self) -> str:
        """The answer's text."""
        parts = []
        for data in self.data:
            if data != "[DONE]":
                parts += [
                    choice.get("delta", {}).get("content") or "" for choice in json.loads(data).get("choices", [])
                ]
        return "".join(parts)

    @property
    def failure(self) -> dict[str, Any] | None:
        """The error event that the server sent."""
        for data in self.data:
            if data != "[DONE]" and "error" in (event := json.loads(data)):
                found: dict[str, Any] = event["error"]
                return found
        return None


class MppxProcess:
    """A running driver. Commands are answered in their order."""

    def __init__(self, folder: Path, chain: TempoChain, url: str) -> None:
        # Imports are looked for beside the importing file: what is installed is linked to where it is run.
        (folder / "node_modules").symlink_to(modules(), target_is_directory=True)
        program = folder / "driver.mjs"
        program.write_text((FOLDER / "driver.mjs").read_text("utf-8"), "utf-8")
        told = {"chainId": chain.chain_id, "rpcUrl": chain.rpc_url, "escrowV1": chain.escrow_v1, "url": url}
        self._log = folder / "driver.log"
        self._chain = chain
        self._number = 0
        self._buffer = b""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(toolchain.node()), str(program), json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def wallet(self, kind: str, *, funds: int, max_deposit: str, deposit: int | None = None) -> "MppxWallet":
        """A funded account and one of the client's ways to pay from it: ``v2``, ``v1`` or ``fetch``."""
        self._number += 1
        name, key = f"{kind}-{self._number}", new_key()
        chosen = {"deposit": str(deposit)} if deposit is not None else {}
        made = self.call("wallet", name=name, kind=kind, key=key, maxDeposit=max_deposit, **chosen)
        self._chain.fund(made["address"], funds)
        return MppxWallet(self, name, made["address"].lower())

    def call(self, command: str, **told: Any) -> Any:
        """One command's answer. Raises `MppxFailed` where the client threw."""
        self._number += 1
        line = json.dumps({"id": self._number, "do": command, **told}) + "\n"
        stdin = self._process.stdin
        if stdin is None:
            raise AssertionError("the client was started without its standard input")
        stdin.write(line.encode())
        answer = json.loads(self._line())
        if answer["id"] != self._number:
            raise AssertionError(f"an answer to {answer['id']} instead of {self._number}")
        if "error" in answer:
            raise MppxFailed(answer["error"])
        return answer["ok"]

    def _line(self) -> bytes:
        ends_s = time.monotonic() + ANSWER_TIMEOUT_S
        stdout = self._process.stdout
        if stdout is None:
            raise AssertionError("the client was started without its standard output")
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], max(0.0, ends_s - time.monotonic()))
            if not ready:
                raise AssertionError(f"the client is silent:\n{self._log.read_text()}")
            part = os.read(stdout.fileno(), READ_BYTES)
            if not part:
                raise AssertionError(f"the client ended:\n{self._log.read_text()}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


@dataclass(frozen=True)
class MppxWallet:
    """One wallet of the client."""

    process: MppxProcess
    name: str
    address: str

    def _call(self, command: str, **told: Any) -> Any:
        return self.process.call(command, name=self.name, **told)

    def ask(self, body: bytes) -> dict[str, Any]:
        """A whole answer."""
        answer: dict[str, Any] = self._call("ask", body=body.decode())
        return answer

    def ask_often(self, body: bytes, *, times: int) -> list[dict[str, Any]]:
        """Whole answers, one after the other."""
        answers: list[dict[str, Any]] = self._call("askOften", body=body.decode(), times=times)
        return answers

    def begin(self, body: bytes) -> None:
        """Begin a stream."""
        self._call("stream", body=body.decode())

    def read(self, events: int | None = None) -> Read:
        """So many events of it, or all that are left."""
        return Read(**self._call("read", **({"events": events} if events is not None else {})))

    def stream(self, body: bytes) -> Read:
        """A stream from its beginning to its end."""
        self.begin(body)
        return self.read()

    def stream_often(self, body: bytes, *, times: int) -> list[Read]:
        """Streams, one after the other."""
        return [Read(**each) for each in self._call("streamOften", body=body.decode(), times=times)]

    def together(self, bodies: Sequence[bytes]) -> list[Mapping[str, Any]]:
        """Streams at once."""
        answers: list[Mapping[str, Any]] = self._call("together", bodies=[body.decode() for body in bodies])
        return answers

    def close(self) -> dict[str, Any]:
        """Close the channel; the receipt."""
        receipt: dict[str, Any] = self._call("close")
        return receipt

    def lose(self, what: str) -> None:
        """What the server says next reaches this machine and not the client.

        ``answer``: to a request that was paid; ``open`` or ``voucher``: to that credential, whatever is said.
        """
        self._call("lose", what=what)

    @property
    def state(self) -> dict[str, Any]:
        """What the client believes of its channel."""
        state: dict[str, Any] = self._call("state")
        return state

    @property
    def calls(self) -> list[Call]:
        """All requests of this wallet to the server so far."""
        return [
            Call(
                each["action"],
                each["channelId"],
                None if each["cumulative"] is None else int(each["cumulative"]),
                each["content"],
                each["status"],
            )
            for each in self._call("calls")
        ]


def validate(folder: Path, chain: TempoChain, url: str) -> list[dict[str, Any]]:
    """The checks of ``mppx validate``, each with its ``label``, ``severity`` and perhaps a ``detail``.

    It pays on the local chain and reaches nothing but this machine.
    """
    key = new_key()
    chain.fund(Account.from_key(key).address, VALIDATOR_FUNDS)
    (folder / "node_modules").symlink_to(modules(), target_is_directory=True)
    for name in ("validate.config.mjs", "loopback.mjs"):
        (folder / name).write_text((FOLDER / name).read_text("utf-8"), "utf-8")
    wallet = {"chainId": chain.chain_id, "rpcUrl": chain.rpc_url, "escrowV1": chain.escrow_v1, "key": key}
    # Into a file: the program ends before a pipe has taken all of it.
    output = folder / "report.json"
    with output.open("wb") as file:
        subprocess.run(
            [
                str(toolchain.node()),
                *("--import", (folder / "loopback.mjs").as_uri()),
                str(folder / "node_modules/mppx/dist/bin.js"),
                *("validate", url, "--yes", "--output-json"),
            ],
            cwd=folder,
            # Nothing of the user's: no account, no key of another payment service.
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(folder),
                "MPPX_CONFIG": str(folder / "validate.config.mjs"),
                "MPPX_STRIPE_SECRET_KEY": "",
                "FAREBOX_VALIDATE": json.dumps(wallet),
            },
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=ANSWER_TIMEOUT_S,
        )
    return list(checks_in(json.loads(output.read_text("utf-8"))))


def checks_in(found: Any) -> Iterator[dict[str, Any]]:
    """All checks of a report, wherever in it they are."""
    if isinstance(found, dict):
        if "severity" in found:
            yield found
        for key, each in found.items():
            if key != "doc":
                yield from checks_in(each)
    elif isinstance(found, list):
        for each in found:
            yield from checks_in(each)
