"""The channel file: durable, shared, and never going back."""

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from farebox_client import Channel, ChannelUnavailable, LimitReached, Store, StoreError
from farebox_client.store import CLAIM_TTL_S
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.client.test_voucher import parts

ORIGIN = "https://api.example:443"
# Children find the package where this process did.
ENVIRON = {"PYTHONPATH": ":".join(sys.path)}
# A child that signs as fast as it can, and says what it signed only after it was recorded.
SIGNER = """
import sys
from farebox_client import Store
store, name, step = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
amount = 0
# Several begin at once, however long each took to start.
sys.stdout.write("0\\n")
sys.stdout.flush()
sys.stdin.readline()
for _ in range(int(sys.argv[4])):
    amount = store.sign(name, at_least=amount + step, authorise=lambda channel, today: None).signed
    sys.stdout.write(f"{amount}\\n")
    sys.stdout.flush()
"""

# A process that has the file open, and forks.
FORKER = """
import os, sys
from farebox_client import Store
store, name = Store(sys.argv[1]), sys.argv[2]
child = os.fork()
if child == 0:
    store.sign(name, at_least=40, authorise=lambda channel, today: None)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(store.get(name).signed)
"""


def allow(channel: Channel, today: int) -> None:
    """No limit."""


def make(**changes: object) -> Channel:
    """A channel that is open and holds a lot."""
    found = parts("tempo-v2")
    channel = Channel(
        channel_id=found.channel_id,
        parts=found,
        origin=ORIGIN,
        url="https://api.example/v1/chat/completions",
        status="open",
        deposit=10**12,
        signed=1,
        accepted=0,
        spent=0,
        valid_before=0,
        opened_at=1,
        used_at=1,
        challenge="Payment x",
        opening="{}",
    )
    return replace(channel, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh channel file."""
    store = Store(tmp_path / "deep" / "channels.db")
    yield store
    store.close()


def test_file_is_for_its_owner_alone(store: Store) -> None:
    store.add(make(), authorise=allow)
    for path in store.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_channel_reads_back_as_it_was_written(store: Store) -> None:
    channel = make(deposit=2**128 - 1, signed=2**100, accepted=5, spent=4)
    store.add(channel, authorise=allow)
    store.close()
    assert store.get(channel.channel_id) == channel
    assert Store(store.path).channels() == [channel]
    assert store.channels(payer="0x" + "00" * 20) == []


def test_what_is_signed_never_falls(store: Store) -> None:
    name = make().channel_id
    store.add(make(), authorise=allow)
    assert store.sign(name, at_least=100, authorise=allow).signed == 100
    assert store.sign(name, at_least=50, authorise=allow).signed == 100
    assert store.get(name).signed == 100


def test_nothing_is_signed_beyond_the_deposit(store: Store) -> None:
    store.add(make(deposit=100), authorise=allow)
    with pytest.raises(ChannelUnavailable, match="holds less"):
        store.sign(make().channel_id, at_least=101, authorise=allow)


@pytest.mark.parametrize("status", ["leaving", "closed", "failed"])
def test_nothing_is_signed_on_a_channel_that_is_over(store: Store, status: str) -> None:
    store.add(make(status=status), authorise=allow)
    with pytest.raises(ChannelUnavailable, match=f"is {status}"):
        store.sign(make().channel_id, at_least=50, authorise=allow)


def test_refusal_leaves_everything_as_it_was(store: Store) -> None:
    name = make().channel_id
    store.add(make(), authorise=allow)
    before = store.today(payer=make().parts.payer)

    def refuse(channel: Channel, today: int) -> None:
        assert (channel.signed, today) == (1, before + 49)
        raise LimitReached("no")

    with pytest.raises(LimitReached):
        store.sign(name, at_least=50, authorise=refuse)
    assert store.get(name).signed == 1
    assert store.today(payer=make().parts.payer) == before


def test_day_counts_what_was_added_and_ends_at_midnight(tmp_path: Path) -> None:
    now = [86_400.0 * 20_000 - 10]
    store = Store(tmp_path / "channels.db", clock=lambda: now[0])
    payer = make().parts.payer
    store.add(make(signed=7), authorise=allow)
    store.sign(make().channel_id, at_least=30, authorise=allow)
    store.sign(make().channel_id, at_least=20, authorise=allow)
    assert store.today(payer=payer) == 30
    now[0] += 20
    assert store.today(payer=payer) == 0
    store.close()


def test_receipts_never_lower_what_is_known(store: Store) -> None:
    name = make().channel_id
    store.add(make(status="opening"), authorise=allow)
    assert store.note(name, accepted=9, spent=8).status == "open"
    found = store.note(name, accepted=3, spent=2)
    assert (found.accepted, found.spent, found.opening) == (9, 8, "")


def test_current_channels_are_the_last_used_first(store: Store) -> None:
    first = make(used_at=5)
    second = replace(make(used_at=9), channel_id="0x" + "22" * 32)
    over = replace(make(status="closed"), channel_id="0x" + "33" * 32)
    for channel in (first, second, over):
        store.add(channel, authorise=allow)
    payer = first.parts.payer
    assert [each.channel_id for each in store.current(payer=payer, origin=ORIGIN)] == [
        second.channel_id,
        first.channel_id,
    ]
    assert store.current(payer=payer, origin="https://other:443") == []


def test_claim_has_one_holder_until_it_ends(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(tmp_path / "channels.db", clock=lambda: now[0])
    assert store.claim("open", owner="a")
    assert store.claim("open", owner="a")
    assert not store.claim("open", owner="b")
    store.release("open", owner="b")
    assert not store.claim("open", owner="b")
    store.release("open", owner="a")
    assert store.claim("open", owner="b")
    # Whoever died holding it is not waited for.
    now[0] += CLAIM_TTL_S + 1
    assert store.claim("open", owner="c")
    store.close()


def test_pin_is_the_first_payee(store: Store) -> None:
    assert store.pin(ORIGIN, "0xa") == "0xa"
    assert store.pin(ORIGIN, "0xb") == "0xa"


@settings(max_examples=15)
@given(amounts=st.lists(st.lists(st.integers(1, 2000), min_size=1, max_size=8), min_size=1, max_size=4))
def test_threads_sign_nothing_twice(tmp_path_factory: pytest.TempPathFactory, amounts: list[list[int]]) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "channels.db")
    store.add(make(signed=0), authorise=allow)
    name, added = make().channel_id, []
    lock = threading.Lock()

    def sign(wanted: list[int]) -> None:
        for amount in wanted:

            def authorise(channel: Channel, today: int, amount: int = amount) -> None:
                with lock:
                    added.append(amount - channel.signed)

            assert store.sign(name, at_least=amount, authorise=authorise).signed >= amount

    with ThreadPoolExecutor(len(amounts)) as pool:
        list(pool.map(sign, amounts))
    highest = max(max(each) for each in amounts)
    assert store.get(name).signed == highest
    assert sum(added) == highest == store.today(payer=make().parts.payer)
    assert all(each > 0 for each in added)
    store.close()


def test_processes_share_one_file(store: Store) -> None:
    store.add(make(signed=0), authorise=allow)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SIGNER, str(store.path), make().channel_id, str(step), "60"],
            env=ENVIRON,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for step in (3, 3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "0\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [[int(line) for line in child.communicate(timeout=60)[0].split()] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    for amounts in said:
        assert amounts == sorted(amounts)
    assert store.get(make().channel_id).signed == max(map(max, said))
    assert store.today(payer=make().parts.payer) == max(map(max, said))


def test_killed_process_leaves_at_least_what_it_signed(store: Store) -> None:
    store.add(make(signed=0), authorise=allow)
    command = [sys.executable, "-c", SIGNER, str(store.path), make().channel_id, "7", "1000000"]
    with subprocess.Popen(command, env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        said = [int(child.stdout.readline()) for _ in range(25)]
        child.kill()
        said += [int(line) for line in child.stdout.read().split()]
    found = store.get(make().channel_id).signed
    assert said[-1] <= found <= said[-1] + 7
    assert store.today(payer=make().parts.payer) == found
    assert store.sign(make().channel_id, at_least=found + 1, authorise=allow).signed == found + 1


def test_forked_child_has_a_connection_of_its_own(store: Store) -> None:
    store.add(make(signed=0), authorise=allow)
    # In a process of its own: this one has threads, and a fork would not be safe.
    command = [sys.executable, "-c", FORKER, str(store.path), make().channel_id]
    assert subprocess.run(command, env=ENVIRON, check=True, capture_output=True, text=True).stdout == "40\n"
    assert store.get(make().channel_id).signed == 40


def test_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "channels.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer version"):
        Store(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "channels.db"
    path.write_text("not a database, and long enough to be read as one" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Store(path)


def test_unknown_channel_is_named(store: Store) -> None:
    with pytest.raises(ChannelUnavailable, match="0x12"):
        store.get("0x12")
