"""``farebox devnet`` and ``farebox contracts deploy``, as processes and as commands."""

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from app.cli import contracts, devnet
from app.settings import ChannelSettings
from tests.contracts.codec import Codec
from tests.devnet.wallet import rpc
from tests.devnet_fixtures import EvmChain, TempoChain

ROOT = Path(__file__).parent.parent.parent
RUN = "import typer; from app.cli.devnet import devnet; typer.run(devnet)"

commands = typer.Typer()
commands.command("devnet")(devnet.devnet)
commands.add_typer(contracts.app, name="contracts")


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", RUN, "--port", "0", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_devnet_prints_what_machines_need_and_ends_when_told(number: signal.Signals, tmp_path: Path) -> None:
    with start("--json", "--state-file", str(tmp_path / "chain.json")) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            text += process.stdout.readline()
        body = json.loads(text)
        assert int(rpc(body["rpc_url"], "eth_chainId"), 16) == body["chain_id"] == 1337
        assert [account["part"] for account in body["accounts"]][:2] == ["operator (payee)", "user's wallet"]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")
    with pytest.raises(httpx.ConnectError):
        httpx.post(body["rpc_url"], json={})
    assert (tmp_path / "chain.json").exists()


def test_devnet_prints_what_people_need() -> None:
    with start() as process:
        assert process.stdout is not None
        text = ""
        while "Stop with Ctrl-C." not in text:
            text += process.stdout.readline()
        process.terminate()
        process.communicate(timeout=30)
    _, _, block = text.partition("For farebox.toml:\n")
    channels = tomllib.loads(block.replace("Stop with Ctrl-C.", ""))["mpp"]["channels"]
    assert [ChannelSettings.model_validate(channel).backend for channel in channels] == ["tempo-v2", "tempo-v1"]
    assert channels[1]["escrow"] in text


def test_devnet_says_that_its_port_is_taken(devnet: TempoChain) -> None:
    port = str(httpx.URL(devnet.rpc_url).port)
    done = CliRunner().invoke(commands, ["devnet", "--port", port])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"farebox: port {port}: Address already in use\n"


# Deployments.


def deploy(monkeypatch: pytest.MonkeyPatch, key: str | None, *arguments: str) -> tuple[int, str, str]:
    """Run the command with a key in the environment; its code and what it printed."""
    monkeypatch.delenv("THE_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("THE_KEY", key)
    done = CliRunner().invoke(commands, ["contracts", "deploy", "--key-env", "THE_KEY", *arguments])
    assert key is None or key not in done.output
    return done.exit_code, done.stdout, done.stderr


def domain_at(url: str, address: str) -> str:
    """The name that a deployed escrow's vouchers are signed for."""
    codec = Codec("StreamChannel")
    call = {"to": address, "data": codec.call_data("eip712Domain", ())}
    name: str = codec.result("eip712Domain", rpc(url, "eth_call", call, "latest"))[1]
    return name


@pytest.mark.parametrize("fee_token", [False, True])
def test_deploy_to_tempo_pays_in_a_token(devnet: TempoChain, monkeypatch: pytest.MonkeyPatch, fee_token: bool) -> None:
    account = devnet.accounts[5]
    before = devnet.balance(account.address)
    options = ["--rpc-url", devnet.rpc_url, "--chain-id", "1337", "--domain", "tempo", "--json"]
    options += ["--currency", devnet.token, *(("--fee-token", devnet.token) if fee_token else ())]
    code, text, errors = deploy(monkeypatch, account.private_key, *options)
    assert (code, errors) == (0, "")
    body = json.loads(text)
    assert domain_at(devnet.rpc_url, body["address"]) == "Tempo Stream Channel"
    assert (body["chain_id"], body["deployer"], body["domain"]) == (1337, account.address, "tempo")
    assert devnet.balance(account.address) < before
    (block,) = tomllib.loads(body["config"])["mpp"]["channels"]
    channel = ChannelSettings.model_validate(block)
    assert (channel.backend, channel.escrow, channel.currency) == ("tempo-v1", body["address"], devnet.token)


def test_deploy_to_a_plain_chain(evm_chain: EvmChain, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--rpc-url", evm_chain.rpc_url, "--chain-id", "31337", "--domain", "evm", "--yes"]
    key = evm_chain.accounts[5].private_key
    code, text, errors = deploy(monkeypatch, key, *options, "--currency", evm_chain.token)
    assert (code, errors) == (0, "")
    (block,) = tomllib.loads(text.partition("For farebox.toml:\n")[2])["mpp"]["channels"]
    assert ChannelSettings.model_validate(block).backend == "evm"
    assert domain_at(evm_chain.rpc_url, block["escrow"]) == "EVM Payment Channel"


def test_deploy_refuses(evm_chain: EvmChain, monkeypatch: pytest.MonkeyPatch) -> None:
    url, key = evm_chain.rpc_url, evm_chain.accounts[5].private_key
    options = ["--rpc-url", url, "--chain-id", "31337", "--domain", "evm"]
    number = int(rpc(url, "eth_blockNumber"), 16)
    wrong = [*options[:3], "1", *options[4:]]
    assert deploy(monkeypatch, key, *wrong)[2] == "farebox: the node is on chain 31337, not on 1\n"
    code, _, errors = deploy(monkeypatch, None, *options)
    assert (code, errors.split(":")[1]) == (2, " THE_KEY is not set")
    code, _, errors = deploy(monkeypatch, "0x1234", *options)
    assert (code, errors) == (1, "farebox: not a private key: 32 bytes of hex are expected\n")
    code, _, errors = deploy(monkeypatch, "0x" + "77" * 32, *options)
    assert code == 1
    assert errors.startswith("farebox: the node refused: Insufficient funds")
    code, _, errors = deploy(monkeypatch, key, "--rpc-url", "http://127.0.0.1:9", *options[2:])
    assert code == 1
    assert errors.startswith("farebox: the node at 127.0.0.1 cannot be used")
    assert int(rpc(url, "eth_blockNumber"), 16) == number


def test_help_says_what_a_deployment_needs() -> None:
    shown = CliRunner().invoke(commands, ["contracts", "deploy", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--rpc-url", "--chain-id", "--key-env", "--domain", "--fee-token", "--confirmations"):
        assert option in shown
