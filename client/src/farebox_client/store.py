"""The channel file: which channels this wallet has, and the most it ever signed on each.

One SQLite file that any number of threads and processes may use at once. What is signed is durable before
the signature exists: after a crash the file may say more than was sent, never less. It holds no keys.

    channels    one row each; amounts are decimal text, as a uint128 fits no SQLite integer
    days        (day, payer) -> what all vouchers of that UTC day added
    claims      names of things that one process does at a time, with an expiry for those that died
    pins        origin -> payee, where the caller trusts on first use
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from farebox_client.channel import Channel, Parts, Status
from farebox_client.errors import ChannelUnavailable, StoreError

VERSION = 1
BUSY_TIMEOUT_S = 30.0
CLAIM_TTL_S = 120
_OPENINGS = ("opening", "open", "leaving")
_SCHEMA = """
CREATE TABLE channels (
    channel_id TEXT PRIMARY KEY, payer TEXT NOT NULL, origin TEXT NOT NULL, url TEXT NOT NULL,
    parts TEXT NOT NULL, status TEXT NOT NULL,
    deposit TEXT NOT NULL, signed TEXT NOT NULL, accepted TEXT NOT NULL, spent TEXT NOT NULL,
    valid_before INTEGER NOT NULL, opened_at INTEGER NOT NULL, used_at INTEGER NOT NULL,
    challenge TEXT NOT NULL, opening TEXT NOT NULL, close_tx TEXT NOT NULL
) STRICT;
CREATE INDEX channels_of ON channels (payer, origin, status);
CREATE TABLE days (day TEXT NOT NULL, payer TEXT NOT NULL, amount TEXT NOT NULL, PRIMARY KEY (day, payer)) STRICT;
CREATE TABLE claims (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
CREATE TABLE pins (origin TEXT PRIMARY KEY, payee TEXT NOT NULL) STRICT;
"""

# Called with the channel and what all vouchers of today then come to; raises to refuse.
Authorise = Callable[[Channel, int], None]
Clock = Callable[[], float]


class Store:
    """One channel file, made on first use with mode 0600. Raises `StoreError` where it cannot be used.

    ``clock`` gives Unix seconds.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock = time.time) -> None:
        self.path = Path(path).expanduser()
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = 0
        self._database: sqlite3.Connection | None = None
        with self._transaction() as database:
            _migrate(database, self.path)

    def close(self) -> None:
        """Close the file. It opens again when it is used again."""
        with self._lock:
            if self._database is not None and self._pid == os.getpid():
                self._database.close()
            self._database = None

    # Channels.

    def channels(self, *, payer: str | None = None) -> list[Channel]:
        """All channels, newest first."""
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM channels ORDER BY opened_at DESC, rowid DESC").fetchall()
        return [channel for channel in map(_channel, rows) if payer in {None, channel.parts.payer}]

    def get(self, channel_id: str) -> Channel:
        """One channel. Raises `ChannelUnavailable`."""
        with self._transaction() as database:
            return _get(database, channel_id)

    def current(self, *, payer: str, origin: str) -> list[Channel]:
        """Channels to an origin that may still hold money, last used first."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT * FROM channels WHERE payer = ? AND origin = ? AND status IN (?, ?, ?) "
                "ORDER BY used_at DESC, rowid DESC",
                (payer, origin, *_OPENINGS),
            ).fetchall()
        return [_channel(row) for row in rows]

    def add(self, channel: Channel, *, authorise: Authorise) -> None:
        """Write a channel down before its opening leaves this process. ``authorise`` as for `sign`."""
        with self._transaction() as database:
            nothing_yet = replace(channel, signed=0)
            self._add_today(database, nothing_yet, channel.signed, authorise)
            values = _row(channel)
            database.execute(
                f"INSERT INTO channels ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                tuple(values.values()),
            )

    def sign(self, channel_id: str, *, at_least: int, authorise: Authorise) -> Channel:
        """Raise what is signed to ``at_least`` base units, durably, and return the channel as it then is.

        What was signed before is enough where it is more: nothing is added then. ``authorise`` is called with the
        channel as it was and today's total as it would be, inside the transaction; if it raises, nothing changes.
        """
        with self._transaction() as database:
            channel = _get(database, channel_id)
            if at_least <= channel.signed:
                return channel
            if channel.status not in {"opening", "open"}:
                raise ChannelUnavailable(f"channel {channel_id} is {channel.status}: nothing more is signed on it")
            if at_least > channel.deposit:
                raise ChannelUnavailable(f"channel {channel_id} holds less than {at_least} base units")
            self._add_today(database, channel, at_least - channel.signed, authorise)
            return _update(database, replace(channel, signed=at_least, used_at=self._now()))

    def note(self, channel_id: str, *, accepted: int = 0, spent: int = 0, acknowledged: bool = True) -> Channel:
        """Keep what a checked receipt or snapshot says; neither amount ever falls."""
        with self._transaction() as database:
            channel = _get(database, channel_id)
            changed = replace(channel, accepted=max(accepted, channel.accepted), spent=max(spent, channel.spent))
            if acknowledged:
                status: Status = "open" if channel.status == "opening" else channel.status
                changed = replace(changed, opening="", status=status)
            return channel if changed == channel else _update(database, changed)

    def set_status(self, channel_id: str, status: Status, *, deposit: int | None = None, close_tx: str = "") -> Channel:
        """Keep what the chain, or a close, said of a channel."""
        with self._transaction() as database:
            channel = _get(database, channel_id)
            changed = replace(
                channel,
                status=status,
                deposit=channel.deposit if deposit is None else deposit,
                close_tx=close_tx or channel.close_tx,
            )
            return channel if changed == channel else _update(database, changed)

    def set_challenge(self, channel_id: str, *, challenge: str, url: str) -> None:
        """Keep the newest challenge, so that another process can manage the channel."""
        with self._transaction() as database:
            channel = _get(database, channel_id)
            _update(database, replace(channel, challenge=challenge, url=url, used_at=self._now()))

    # What is spent in a day, who does what, and who was met first.

    def today(self, *, payer: str) -> int:
        """Base units that the vouchers of this UTC day added."""
        with self._transaction() as database:
            return self._today(database, payer)

    def claim(self, name: str, *, owner: str) -> bool:
        """Whether ``owner`` now holds the name. A claim ends by `release`, or after `CLAIM_TTL_S`."""
        now = self._now()
        with self._transaction() as database:
            held = database.execute("SELECT owner FROM claims WHERE name = ? AND until > ?", (name, now)).fetchone()
            if held is not None and held["owner"] != owner:
                return False
            database.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (name, owner, now + CLAIM_TTL_S))
            return True

    def release(self, name: str, *, owner: str) -> None:
        """Give a claim back; nothing happens if it is not held."""
        with self._transaction() as database:
            database.execute("DELETE FROM claims WHERE name = ? AND owner = ?", (name, owner))

    def pin(self, origin: str, payee: str) -> str:
        """The payee of an origin on first use, which is this one if there was none."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO pins VALUES (?, ?)", (origin, payee))
            pinned: str = database.execute("SELECT payee FROM pins WHERE origin = ?", (origin,)).fetchone()["payee"]
            return pinned

    # The file.

    def _now(self) -> int:
        return int(self._clock())

    def _today(self, database: sqlite3.Connection, payer: str) -> int:
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        row = database.execute("SELECT amount FROM days WHERE day = ? AND payer = ?", (day, payer)).fetchone()
        return 0 if row is None else int(row["amount"])

    def _add_today(self, database: sqlite3.Connection, channel: Channel, added: int, authorise: Authorise) -> None:
        payer = channel.parts.payer
        total = self._today(database, payer) + added
        authorise(channel, total)
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        database.execute("INSERT OR REPLACE INTO days VALUES (?, ?, ?)", (day, payer, str(total)))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                database = self._connected()
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"the channel file {self.path} cannot be used: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        # A connection must not cross a fork.
        if self._database is None or self._pid != os.getpid():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its side files the mode of the main one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
            self._database = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._pid = os.getpid()
        return self._database


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StoreError(f"the channel file {path} was written by a newer version of farebox-client: update it")
    if version == 0:
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")


def _get(database: sqlite3.Connection, channel_id: str) -> Channel:
    row = database.execute("SELECT * FROM channels WHERE channel_id = ?", (channel_id,)).fetchone()
    if row is None:
        raise ChannelUnavailable(f"there is no channel {channel_id} in the channel file")
    return _channel(row)


def _update(database: sqlite3.Connection, channel: Channel) -> Channel:
    values = _row(channel)
    assignments = ", ".join(f"{name} = ?" for name in values)
    database.execute(f"UPDATE channels SET {assignments} WHERE channel_id = ?", (*values.values(), channel.channel_id))
    return channel


def _row(channel: Channel) -> dict[str, Any]:
    values = {name: getattr(channel, name) for name in Channel.__dataclass_fields__}
    for name in ("deposit", "signed", "accepted", "spent"):
        values[name] = str(values[name])
    return {**values, "parts": json.dumps(asdict(channel.parts)), "payer": channel.parts.payer}


def _channel(row: sqlite3.Row) -> Channel:
    values: dict[str, Any] = {name: row[name] for name in Channel.__dataclass_fields__}
    for name in ("deposit", "signed", "accepted", "spent"):
        values[name] = int(values[name])
    return Channel(**{**values, "parts": Parts(**json.loads(values["parts"]))})
