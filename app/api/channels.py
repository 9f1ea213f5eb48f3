"""``GET /v1/channels/{channelId}``: what the chain knows to anybody, what we know to the channel's payer.

A payer is proven by a voucher that no chain has published, in a ``Payment`` credential; any challenge of
this server will do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.services import services
from app.clock import to_rfc3339
from app.errors import InvalidRequest, NotFound
from app.money import BaseUnits, base_units_up
from app.rails.credential import is_payment, malformed, parse

if TYPE_CHECKING:
    from app.channels.store import ChannelRecord, ReceiptRecord

NO_STORE = {"cache-control": "no-store"}


async def channel(request: Request) -> Response:
    """One channel. Raises `NotFound`, or `PaymentProblem` for a credential that is not good."""
    # A server that no wallet pays does not need them.
    from app.mpp.descriptor import hash_of
    from app.rails.challenger import Ask

    found = services(request)
    headers = dict(request.headers.raw)
    try:
        channel_id = hash_of(request.path_params["channel_id"].lower())
    except ValueError as error:
        raise InvalidRequest("a channel id is 0x and 64 hexadecimal digits", param="channelId") from error
    if found.wallets is None or found.channels is None:
        raise NotFound("no channels are served here", code="channel_not_found")
    proven = False
    receipt = None
    if is_payment(headers):
        credential = parse(headers)
        if not isinstance(credential.payload, dict) or credential.payload.get("action") != "voucher":
            raise malformed("a channel is shown to who presents a voucher")
        managed = await found.wallets.rail.manage(credential, Ask(request.scope["path"], None))
        receipt = managed.receipt
        proven = managed.receipt.channel_id == channel_id and managed.proven
    record = await asyncio.to_thread(found.channels.find, channel_id)
    if record is None:
        raise NotFound(f"there is no channel {channel_id}", code="channel_not_found", param="channelId")
    body = public(record)
    if proven:
        receipts = await asyncio.to_thread(found.channels.receipts, channel_id)
        body |= private(record) | {"receipts": [receipt_row(each) for each in receipts]}
    more = {"Payment-Receipt": receipt.to_header(), "cache-control": "private"} if receipt is not None else NO_STORE
    return JSONResponse(body, headers=more)


def public(record: ChannelRecord) -> dict[str, object]:
    """What is on chain anyway; amounts are decimal strings of base units."""
    view = record.view
    return {
        "object": "channel",
        "channelId": record.id,
        "backend": record.backend,
        "chainId": record.chain_id,
        "escrow": record.escrow,
        "descriptor": record.descriptor.to_wire(),
        "status": view.status,
        "deposit": str(view.deposit),
        "settled": str(view.settled),
        "closeRequestedAt": str(view.close_requested_at) if view.close_requested_at else None,
        "createdAt": to_rfc3339(record.created_at),
    }


def private(record: ChannelRecord) -> dict[str, object]:
    """What only its payer and we know."""
    view = record.view
    return {
        "acceptedCumulative": str(view.accepted_cumulative),
        "spent": str(view.spent_cumulative),
        "held": str(base_units_up(view.held)),
        "available": str(max(0, view.accepted_cumulative - base_units_up(view.held) - view.spent_cumulative)),
    }


def receipt_row(receipt: ReceiptRecord) -> dict[str, object]:
    """A stored receipt."""
    return {
        "requestId": receipt.request_id,
        "challengeId": receipt.challenge_id,
        "acceptedCumulative": str(BaseUnits(receipt.accepted)),
        "spent": str(BaseUnits(receipt.spent)),
        "units": receipt.units,
        "at": to_rfc3339(receipt.created_at),
    }


routes = [Route("/v1/channels/{channel_id}", channel, methods=["GET"])]
