"""``POST /v1/topups``: money for an API key's balance, paid from a wallet by one transfer.

{"amount": "5.00"} with the key  -> 402, a `charge` challenge that remembers whose balance it is for
the same body with ``Authorization: Payment`` -> credited once, however often it is sent
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.account import NO_STORE, authenticated
from app.api.inference import ClientGone, read_body
from app.api.json_body import parse_object
from app.api.services import services
from app.errors import AuthenticationFailed, InvalidRequest, NotFound, PaymentProblem
from app.ledger.account import CUSTOMER_PREFIX
from app.money import NanoUsd, format_usd, parse_usd
from app.rails.credential import is_payment, parse

if TYPE_CHECKING:
    from mpp import Credential

    from app.rails.challenger import Ask
    from app.rails.mpp_charge import ChargeRail

ROUTE = "/v1/topups"
BODY_BYTES_MAX = 4096
DEPTH_MAX = 4


async def top_up(request: Request) -> Response:
    """Start a top-up, or take its payment."""
    found = services(request)
    wallets = found.wallets
    if wallets is None or wallets.charge is None:
        raise NotFound("top-ups from wallets are not offered here", code="topups_not_offered")
    from app.rails.challenger import Ask

    headers = dict(request.headers.raw)
    try:
        content = await read_body(
            request.receive, headers, bytes_max=BODY_BYTES_MAX, timeout_s=found.settings.server.body_timeout_s
        )
    except ClientGone:
        # Nobody is there to be told.
        return Response(status_code=400)
    amount = _amount(content, at_most=parse_usd(found.settings.mpp.deposit_max))
    ask = Ask(ROUTE, content, None, description=f"top-up of {format_usd(amount)} USD")
    if not is_payment(headers):
        key = await authenticated(request)
        raise _challenged(wallets.charge, ask, amount, account_id=key.account_id)
    # The key may come again beside the payment: it is not needed, and not what pays.
    credential = parse({name: value for name, value in headers.items() if name != b"x-api-key"})
    try:
        paid = await wallets.charge.collect(credential, ask)
    except PaymentProblem as problem:
        raise _again(wallets.charge, problem, credential, ask, amount) from problem
    customer = await asyncio.to_thread(found.customers.read, paid.account_id.removeprefix(CUSTOMER_PREFIX))
    body: dict[str, Any] = {"object": "topup", "amount": format_usd(paid.amount), "payer": paid.payer}
    more = {"Payment-Receipt": paid.receipt, "cache-control": "private"}
    return JSONResponse(body | customer.balance(), headers=NO_STORE | more)


def _amount(content: bytes, *, at_most: NanoUsd) -> NanoUsd:
    text = parse_object(content, depth_max=DEPTH_MAX).get("amount")
    try:
        amount = parse_usd(text) if isinstance(text, str) else NanoUsd(0)
    except ValueError as error:
        raise InvalidRequest(f"amount: {error}", param="amount") from error
    if not 0 < amount <= at_most:
        raise InvalidRequest(
            f'amount is a decimal string in USD up to {format_usd(at_most)}, like "5.00"', param="amount"
        )
    return amount


def _challenged(charge: ChargeRail, ask: Ask, amount: NanoUsd, *, account_id: str) -> PaymentProblem:
    header = charge.challenge(ask, amount, account_id=account_id)
    return PaymentProblem(f"pay {format_usd(amount)} USD from a wallet to top up this key's balance", headers=[header])


def _again(charge: ChargeRail, problem: PaymentProblem, credential: Credential, ask: Ask, amount: NanoUsd) -> Exception:
    """A refused payment: the challenge knew whose balance it was for. One that is not ours starts with the key."""
    if problem.status != 402 or problem.headers:
        return problem
    account_id = charge.account_of(credential)
    if not account_id:
        return AuthenticationFailed("begin with the API key: its 402 has the challenge to pay", code="missing_api_key")
    problem.headers = (charge.challenge(ask, amount, account_id=account_id),)
    return problem


routes = [Route(ROUTE, top_up, methods=["POST"])]
