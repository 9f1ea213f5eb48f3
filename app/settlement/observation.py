"""The chain's word about a channel, taken into the books."""

from app.chain.backend import ChannelState
from app.channels.channel import ChannelView
from app.errors import InvariantViolated
from app.ledger.journal import Journal
from app.ledger.operation import Changed, Observe
from app.money import BaseUnits


def means_nothing(state: ChannelState | None) -> bool:
    """Whether a state says neither that a channel is there nor that it is over.

    That is what a node shows which is behind, and what some escrows show in the middle of a settlement.
    """
    return state is None or (not state.finalized and state.deposit <= 0)


def differs(state: ChannelState, view: ChannelView) -> bool:
    """Whether the chain says anything that the books do not."""
    if state.finalized or view.status == "closed":
        return state.finalized != (view.status == "closed")
    said = (state.deposit, max(state.settled, view.settled), state.close_requested_at)
    return said != (view.deposit, view.settled, view.close_requested_at)


async def take(journal: Journal, channel_id: str, state: ChannelState) -> Changed:
    """Have the ledger take a state. Durable when it returns; repeatable."""
    return await observed(
        journal,
        Observe(
            channel_id,
            BaseUnits(state.deposit),
            BaseUnits(state.settled),
            state.close_requested_at,
            state.finalized,
            state.block,
        ),
    )


async def observed(journal: Journal, operation: Observe) -> Changed:
    """Submit an observation of a channel that is there."""
    result = await journal.submit(operation, must=True)
    if not isinstance(result, Changed):
        raise InvariantViolated(f"channel {operation.channel_id} is not in the books")
    return result
