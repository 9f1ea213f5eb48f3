"""The command line, as it is typed: what it prints, where, and how it ends."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from farebox_client import cli, usd
from farebox_client.store import Store

from tests.client.conftest import KEY, PAYER, MakeEdge
from tests.client.edge import Edge
from tests.client.edge_chain import ESCROW_V1, PAYEE

Main = Callable[..., "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    """Runs a command as the console script does, with a channel file of the test's own."""
    monkeypatch.setenv("FAREBOX_WALLET_KEY", KEY)
    monkeypatch.setenv("FAREBOX_CLIENT_STORE", str(tmp_path / "channels.db"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["farebox-client", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        code = caught.value.code
        return Ended(code if isinstance(code, int) else 0, said.out, said.err)

    return run


def trusting(edge: Edge) -> list[str]:
    """The options that trust an edge."""
    return ["--base-url", edge.url, "--rpc-url", edge.rpc_url, "--payee", PAYEE]


def test_chat_prints_the_answer_and_nothing_else(edge: Edge, main: Main) -> None:
    ended = main("chat", "Hi", *trusting(edge))
    assert ended == Ended(0, "Hello there\n", "")
    assert edge.channel.spent == 200


def test_life_of_a_channel(edge: Edge, main: Main) -> None:
    main("chat", "Hi", *trusting(edge))
    ended = main("channels")
    assert ended.out.splitlines()[0].split() == ["channel", "status", "kind", "server", "deposit", "signed", "spent"]
    (listed,) = json.loads(main("channels", "--json").out)["channels"]
    assert (listed["status"], listed["spent"], listed["payer"]) == ("open", "0.0002", PAYER)
    topped = json.loads(main("top-up", "0.05", "--rpc-url", edge.rpc_url, "--json").out)
    assert topped == {"channel": listed["channel"], "deposit": "0.15"}
    balance = json.loads(main("balance", listed["channel"][:10], "--rpc-url", edge.rpc_url, "--json").out)
    assert (balance["deposit"], balance["remaining"]) == ("0.15", "0.1498")
    closed = main("close", "--json")
    assert json.loads(closed.out) == {
        "channel": listed["channel"],
        "spent": "0.0002",
        "transaction": "0x" + "ab" * 32,
    }
    assert main("close").code == 7


def test_payer_leaves_on_chain(edge: Edge, main: Main) -> None:
    edge.now = int(time.time())
    main("chat", "Hi", *trusting(edge))
    rpc = ["--rpc-url", edge.rpc_url]
    assert main("withdraw", *rpc).code == 7
    assert main("request-close", *rpc).out.split() == ["transaction", "0x" + "cd" * 32]
    early = main("withdraw", *rpc)
    assert (early.code, "can be withdrawn in 900 seconds" in early.err) == (7, True)
    edge.now += 900
    assert main("withdraw", *rpc).code == 0
    assert edge.channel.closed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rpc-url", "RPC"], 3, "is not a payee that is trusted there"),
        (["--rpc-url", "RPC", "--payee", PAYEE, "--max-cost", "0.00015"], 4, "this request would come to 0.0002 USD"),
        (["--rpc-url", "RPC", "--payee", PAYEE, "--max-output-price", "3"], 4, "price for output is 4.00 USD"),
        (["--rpc-url", "RPC", "--payee", PAYEE, "--max-fee", "0.001"], 4, "the fee would come to"),
        (["--payee", PAYEE], 3, "which this wallet has no node for"),
        (["--rpc-url", "RPC", "--payee", PAYEE, "--token", ESCROW_V1], 3, "add Trust(tokens="),
        (["--rpc-url", "http://127.0.0.1:9", "--payee", PAYEE], 9, "did not answer eth_chainId"),
    ],
)
def test_refusal_is_a_sentence_and_a_code(
    edge: Edge, main: Main, arguments: list[str], code: int, message: str
) -> None:
    named = [edge.rpc_url if each == "RPC" else each for each in arguments]
    ended = main("chat", "Hi", "--base-url", edge.url, *named)
    assert ended.code == code
    assert ended.err.startswith("farebox-client: ")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert KEY[2:] not in ended.err + ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-cost", "much"], "is not an amount"),
        (["--rpc-url", "node:8545"], "is not an http"),
        (["--rpc-url", "RPC", "--payee", "0x12"], "hexadecimal digits"),
        (["--wallet-key-env", "NO_SUCH_KEY"], "set $NO_SUCH_KEY"),
        (["--wallet-key-env", "BAD_KEY"], "$BAD_KEY: the key is not a private key"),
    ],
)
def test_wrong_usage_is_told_from_refusals(
    edge: Edge, main: Main, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("BAD_KEY", "0x" + "zz" * 32)
    named = [edge.rpc_url if each == "RPC" else each for each in arguments]
    ended = main("chat", "Hi", "--base-url", edge.url, *named)
    assert ended.code == 2
    assert message in ended.err
    assert "zz" * 32 not in ended.err


def test_server_that_is_not_there_is_named(edge: Edge, main: Main) -> None:
    ended = main("chat", "Hi", "--base-url", "http://127.0.0.1:9/v1", "--rpc-url", edge.rpc_url)
    assert ended.code == 11
    assert ended.err.startswith("farebox-client: the server could not be reached")


def test_server_that_fails_is_quoted(make_edge: MakeEdge, main: Main) -> None:
    edge = make_edge()
    edge.lies.fail_after_voucher = True
    ended = main("chat", "Hi", *trusting(edge))
    assert ended == Ended(11, "", "farebox-client: the server answered 500: the provider failed\n")


def test_prompt_may_come_from_standard_input(edge: Edge, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert main("chat", "-", *trusting(edge), "--system", "Be brief", "--max-tokens", "5").code == 0


def test_terminal_sees_tokens_and_money(edge: Edge, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    main("chat", "Hi", *trusting(edge))
    ended = main("chat", "Hi", *trusting(edge))
    assert ended.out == "Hello there\n"
    assert "2 tokens, 0.0002 USD signed" in ended.err
    assert ended.err.rstrip().endswith(click.style("2 tokens, 0.0002 USD", dim=True))
    quiet = main("chat", "Hi", "-q", *trusting(edge))
    assert quiet.err == ""


def test_channels_of_an_empty_file(main: Main) -> None:
    assert main("channels") == Ended(0, "no channels\n", "")


def test_help_names_every_command(main: Main) -> None:
    text = main("--help").out
    for command in ("chat", "channels", "balance", "close", "top-up", "request-close", "withdraw"):
        assert command in text
    assert "--max-cost" in main("chat", "--help").out


def test_trust_on_first_use_must_be_asked_for(edge: Edge, main: Main, tmp_path: Path) -> None:
    options = ["--base-url", edge.url, "--rpc-url", edge.rpc_url]
    assert main("chat", "Hi", *options).code == 3
    assert main("chat", "Hi", *options, "--trust-on-first-use").code == 0
    assert Store(tmp_path / "channels.db").channels()[0].signed == usd("0.0002")
