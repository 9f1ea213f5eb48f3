"""What differs for a request that a channel pays for: its plan, its first hold, and what a failure is called.

Everything else is the one code path of `app/paid_job.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from app.admission import PaidRequest, Plan, refusal
from app.errors import BillingRefused, FareboxError, InvalidRequest, PaymentProblem
from app.ledger.operation import Admit, ClaimFound, Refused, Result
from app.money import NanoUsd, format_usd
from app.settings import LedgerSettings

if TYPE_CHECKING:
    from app.rails.session import Say, Session

Submit = Callable[[Admit], Awaitable[Result]]


def terms_for(
    plan: Plan, request: PaidRequest, session: Session | None, *, ledger: LedgerSettings
) -> tuple[Plan, NanoUsd, LedgerSettings]:
    """The plan, what must be free before anything is sent, and the ledger's settings, for any payer.

    Raises `PaymentProblem`, and `InvalidRequest` where only streams are served.
    """
    if session is None:
        return plan, plan.required, ledger
    plan = _plan_on_channel(plan, request, session)
    return plan, _required_on_channel(plan, request), _ledger_on_channel(ledger, session)


def _plan_on_channel(plan: Plan, request: PaidRequest, session: Session) -> Plan:
    """The plan within what the channel can still be paid for. Raises `PaymentProblem`, saying what could be.

    A limit that the caller set for a whole answer is theirs to change; any other is clipped.
    """
    buyable = NanoUsd(max(0, session.buyable))
    if session.window_cost_max is not None and not request.stream:
        message = "on this kind of channel only streams are served: its close pays whole vouchers; set stream to true"
        raise InvalidRequest(message, code="stream_required", param="stream")
    tokens = plan.affordable(buyable) // plan.choices
    if not plan.limit:
        return _whole_on_channel(plan, request, session, buyable)
    if tokens >= 1 and (request.stream or plan.limit_defaulted or tokens >= plan.limit):
        return plan.within(buyable)
    if tokens >= 1 and session.offer.tops_up:
        return replace(plan, limit_defaulted=False)
    problem = session.problem(
        session,
        f"the channel's deposit has {format_usd(buyable)} USD left and the request needs up to "
        f"{format_usd(plan.ceiling)} USD; set {request.output_limit_param} to at most {tokens}, or top up",
        "session/insufficient-balance",
        session.view.required_cumulative(wanted=_required_on_channel(plan, request)),
    )
    problem.details |= {"affordable_tokens": tokens}
    raise problem


def _whole_on_channel(plan: Plan, request: PaidRequest, session: Session, buyable: NanoUsd) -> Plan:
    """A plan without an output limit to clip: it is paid whole, or asks for a top-up, or is refused."""
    if plan.ceiling <= buyable or session.offer.tops_up:
        return plan
    raise session.problem(
        session,
        f"the channel's deposit has {format_usd(buyable)} USD left and the request needs up to "
        f"{format_usd(plan.ceiling)} USD; top up",
        "session/insufficient-balance",
        session.view.required_cumulative(wanted=plan.ceiling),
    )


def _required_on_channel(plan: Plan, request: PaidRequest) -> NanoUsd:
    """What must be free before anything is sent: a whole answer's ceiling, or a stream's first token."""
    return plan.ceiling if plan.whole or not request.stream else plan.cost(plan.choices)


def _ledger_on_channel(settings: LedgerSettings, session: Session) -> LedgerSettings:
    """The ledger's settings, with windows as small as an escrow that pays whole vouchers needs them."""
    if session.window_cost_max is None:
        return settings
    return settings.model_copy(update={"window_cost_max": session.window_cost_max})


async def admitted(first: Admit, session: Session | None, request: PaidRequest, *, submit: Submit, say: Say) -> Result:
    """The first hold. On a channel, a stream whose payer is proven waits for a voucher, and says so.

    Nobody else's stream waits: the voucher that it would wait for would be another's.
    """
    result = await submit(first)
    if session is not None and isinstance(result, ClaimFound) and not session.proven(session.view):
        # A stored answer is its payer's, and whoever shows what the chain published may be anybody.
        return Refused("insufficient_balance", required=first.required, channel=session.view)
    if session is None or not isinstance(result, Refused) or not request.stream:
        return result
    if result.reason not in {"insufficient_balance", "exposure"} or not session.proven(result.channel):
        return result

    async def again() -> Result:
        first.channel = session.condition()
        return await submit(first)

    return await session.wait(result, minimum=first.required, wanted=first.amount, attempt=again, say=say)


def refused_error(
    refused: Refused, plan: Plan | None, request: PaidRequest, session: Session | None, *, started: bool
) -> FareboxError:
    """What a refused hold is called: before anything was sent with what would help, in mid-stream in words alone."""
    if session is None or refused.reason != "insufficient_balance":
        if session is not None and not started:
            return session.refusal(refused)
        return refusal(refused, plan, limit_param=request.output_limit_param)
    if not started:
        return session.refusal(refused)
    waited = f"no voucher came within {session.voucher_timeout_s:g} s"
    view = refused.channel or session.view
    if not session.offer.tops_up and view.accepted_cumulative >= view.deposit:
        waited = "the channel's deposit is used up"
    return BillingRefused(f"{waited}: this is all that was delivered and billed", code="no_voucher")


def softened(error: FareboxError, session: Session | None) -> FareboxError:
    """An error as the client of a channel that was just opened is told it: never as if nothing were open."""
    if session is None or not session.opened or isinstance(error, PaymentProblem):
        return error
    return session.kept(error)
