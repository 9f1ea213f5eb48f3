"""`farebox channels` and `farebox chain`, without a server and beside one."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.channels.outbox_store import CONFIRMED, INTENT
from app.cli import chain as chain_commands
from app.cli import channels as channel_commands
from app.clock import SystemClock
from app.database import SingleServer
from app.ledger.lease_store import LeaseStore
from tests.devnet_fixtures import TempoChain
from tests.settlement.conftest import Shop, ShopMaker


class Command:
    """Runs commands on a shop's database, in a thread: they have event loops of their own."""

    def __init__(self, shop: Shop, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = shop.settings.channels[0]
        self.config = folder / "farebox.toml"
        lines = [
            "[database]",
            f'url = "{shop.engine.url.render_as_string(hide_password=False)}"',
            "[[mpp.channels]]",
            f'backend = "{entry.backend}"',
            f"chain_id = {entry.chain_id}",
            f'rpc_url = "{entry.rpc_url}"',
            f'escrow = "{entry.escrow}"',
            f'currency = "{entry.currency}"',
        ]
        self.config.write_text("\n".join(lines).replace("postgresql+psycopg", "postgresql"))
        monkeypatch.setenv("FAREBOX_PAYEE_KEY", shop.bench.payee_key)

    async def __call__(self, *arguments: str, code: int = 0) -> Any:
        group = chain_commands.app if arguments[0] == "status" else channel_commands.app
        command = [*arguments, "--config", str(self.config)]
        result = await asyncio.to_thread(CliRunner().invoke, group, [*command, "--json"])
        assert result.exit_code == code, (result.output, result.exception)
        return json.loads(result.stdout) if result.stdout.startswith("{") else result.stderr

    async def text(self, *arguments: str) -> str:
        group = chain_commands.app if arguments[0] == "status" else channel_commands.app
        result = await asyncio.to_thread(CliRunner().invoke, group, [*arguments, "--config", str(self.config)])
        return result.stdout


@pytest.fixture
def command(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(shop, tmp_path, monkeypatch)


async def test_channels_are_listed_and_shown(shop: Shop, command: Command) -> None:
    channel_id = await shop.open(voucher=50_001)
    await shop.spend(channel_id, 50_000_500)
    [row] = (await command("list"))["channels"]
    assert (row["id"], row["kind"], row["status"]) == (channel_id, "tempo-v1", "open")
    assert (row["deposit"], row["accepted"], row["spent"], row["settled"]) == ("1.00", "0.050001", "0.0500005", "0.00")
    assert (await command("list", "--status", "closed")) == {"channels": []}
    shown = await command("show", channel_id[:12].upper().replace("0X", "0x"))
    assert (shown["id"], shown["uncollected"], shown["settlements"]) == (channel_id, "0.0500005", [])
    assert channel_id in await command.text("list")
    assert "no settlements" in await command.text("show", channel_id)
    assert "no channel" in await command("show", "0x00", code=1)
    assert "--status" in await command("list", "--status", "shut", code=1)


async def test_settling_without_a_server_is_done_by_the_command(shop: Shop, command: Command) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 50_000_000)
    done = await command("settle", channel_id)
    assert (done["settled"], done["settlement"]["state"], done["settlement"]["capture"]) == ("0.05", CONFIRMED, "0.05")
    assert (await shop.on_chain(channel_id)).settled == 50_000
    assert "nothing to settle" in await command("settle", channel_id, code=1)


async def test_closing_without_a_server_is_done_by_the_command(shop: Shop, command: Command) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    done = await command("close", channel_id)
    assert (done["status"], done["settlement"]["kind"], done["settlement"]["capture"]) == ("closed", "close", "0.04")
    assert (await shop.on_chain(channel_id)).finalized
    assert "closed already" in await command("close", channel_id, code=1)


async def test_beside_a_server_a_command_only_writes_what_is_to_be_done(shop: Shop, command: Command) -> None:
    channel_id, other = await shop.open(voucher=50_000), await shop.open(voucher=50_000)
    await shop.spend(other, 50_000_000)
    server = SingleServer(shop.engine)
    server.acquire()
    try:
        frozen, planned = await command("close", channel_id), await command("settle", other)
    finally:
        server.release()
    assert (frozen["status"], frozen["settlement"]) == ("closing", None)
    assert "the running server" in frozen["message"]
    assert planned["settlement"]["state"] == INTENT
    assert not (await shop.on_chain(channel_id)).finalized
    # The server's next look.
    await shop.until_done(shop.settler())
    assert [row.state for row in (*shop.settlements(channel_id), *shop.settlements(other))] == [CONFIRMED, CONFIRMED]


async def test_server_on_postgresql_is_known_by_its_heartbeat(
    make_shop: ShopMaker, devnet: TempoChain, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = await make_shop(devnet, url=postgres_url)
    command = Command(shop, tmp_path, monkeypatch)
    channel_id = await shop.open(voucher=50_000)
    leases = LeaseStore(shop.engine)
    leases.register("own_server", now=SystemClock().now_ms())
    assert (await command("close", channel_id))["status"] == "closing"
    leases.beat("own_server", now=shop.clock.now_ms())
    assert (await command("close", channel_id))["status"] == "closed"


async def test_channel_with_holds_of_a_killed_server_is_only_frozen(shop: Shop, command: Command) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.hold(channel_id, 10_000_000)
    left = await command("close", channel_id, code=1)
    assert (left["status"], left["held"]) == ("closing", "0.01")
    assert "farebox serve" in left["message"]
    assert not shop.settlements(channel_id)


async def test_status_tells_of_node_account_outbox_and_exposure(shop: Shop, command: Command) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    body = await command("status", "--check")
    [node], [kind] = body["nodes"], body["exposures"]
    assert (node["node"], node["account"], node["balance"]) == ("ok", shop.backend.account, "10.00")
    assert node["head"] > 0
    assert (kind["kind"], kind["open"], kind["closing"], kind["uncollected"]) == ("tempo-v1", 1, 0, "0.04")
    assert body["check"] == {"green": True, "compared": 1, "differences": [], "unseen": []}
    assert body["settlements"] == []
    text = await command.text("status", "--check")
    assert "the chain agrees with the books (1 channels)" in text
    await shop.freeze(channel_id)
    await shop.settler().plan()
    assert [row["state"] for row in (await command("status"))["settlements"]] == [INTENT]


async def test_status_names_what_the_chain_says_otherwise(shop: Shop, command: Command) -> None:
    first, second = await shop.open(), await shop.open()
    await shop.top_up(first, 5)
    await shop.request_close(second)
    found = (await command("status", "--check", code=1))["check"]
    assert not found["green"]
    named = {(each["channel_id"], each["what"], each["books"], each["chain"]) for each in found["differences"]}
    assert named == {
        (first, "deposit", "1000000", "1000005"),
        (second, "close", "not requested", "requested"),
    }
    # What the watcher takes agrees.
    await shop.watcher().look()
    assert (await command("status", "--check"))["check"]["green"]


async def test_status_of_a_node_that_is_away_says_so(shop: Shop, command: Command) -> None:
    text = command.config.read_text().replace(shop.settings.channels[0].rpc_url, "http://127.0.0.1:9")
    command.config.write_text(text)
    body = await command("status", code=1)
    assert "cannot be reached" in body["nodes"][0]["node"]
