"""`farebox chain status --check`: whether the chain says of every open channel what the books say.

Reads only. A difference may be seconds old: what the watcher has not taken yet. One that stays is wrong.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.chain.backend import ChainUnavailable, ChannelState
from app.chain.places import Places
from app.channels.store import ChannelRecord

AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a channel's row and its escrow disagree; amounts in base units."""

    channel_id: str
    what: str
    books: str
    chain: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a comparison found. ``unseen`` channels could not be read."""

    compared: int
    differences: Sequence[Difference]
    unseen: Sequence[Difference]

    @property
    def green(self) -> bool:
        return not self.differences and not self.unseen


async def compare(places: Places, records: Iterable[ChannelRecord]) -> ChainReport:
    """Ask the chain about each channel, a few at a time."""
    gate = asyncio.Semaphore(AT_ONCE)
    differences: list[Difference] = []
    unseen: list[Difference] = []

    async def one(record: ChannelRecord) -> None:
        backend = places.of(record)
        if backend is None:
            unseen.append(Difference(record.id, "backend", record.backend, "no [[mpp.channels]] entry serves it"))
            return
        async with gate:
            try:
                state = await backend.channel(record.id)
            except ChainUnavailable as error:
                unseen.append(Difference(record.id, "state", record.view.status, str(error)))
                return
        differences.extend(_differences(record, state))

    wanted = list(records)
    await asyncio.gather(*map(one, wanted))
    order = {record.id: place for place, record in enumerate(wanted)}
    differences.sort(key=lambda found: (order[found.channel_id], found.what))
    return ChainReport(len(wanted) - len(unseen), differences, unseen)


def _differences(record: ChannelRecord, state: ChannelState | None) -> Iterable[Difference]:
    view = record.view
    if state is None:
        if view.status != "closed":
            yield Difference(record.id, "channel", view.status, "unknown")
        return
    if state.finalized != (view.status == "closed"):
        yield Difference(record.id, "status", view.status, "closed" if state.finalized else "open")
    if state.settled != view.settled:
        yield Difference(record.id, "settled", str(view.settled), str(state.settled))
    if state.finalized or view.status == "closed":
        return
    if state.deposit != view.deposit:
        yield Difference(record.id, "deposit", str(view.deposit), str(state.deposit))
    if bool(state.close_requested_at) != bool(view.close_requested_at):
        said = ("not requested", "requested")
        yield Difference(record.id, "close", said[bool(view.close_requested_at)], said[bool(state.close_requested_at)])
