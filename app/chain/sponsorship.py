"""Which fees of clients' transactions we pay: exactly the calls that were asked for, within bounds. Pure
but for the budget, whose count somebody else keeps.

A signature of ours is money: once a client has it, it can broadcast the transaction at any time in its
window, and a reverted transaction costs as much as any. So nothing is signed whose worst case is not
reserved first. The bounds are those that public clients and servers of the method use.
"""

from typing import Final, Protocol

from app.chain.backend import TransactionRefused
from app.chain.tempo_transaction import EXPIRING_NONCE_KEY, TempoTransaction
from app.money import BaseUnits

GWEI = 10**9
GAS_MAX = 2_000_000
FEE_PER_GAS_MAX = 100 * GWEI
PRIORITY_FEE_PER_GAS_MAX = 10 * GWEI
# Moderato, the public test network, regularly needs more.
PRIORITY_FEE_PER_GAS_MAX_BY_CHAIN: Final = {42431: 50 * GWEI}
FEE_MAX = BaseUnits(50_000)
VALIDITY_S_MAX = 15 * 60
# Nodes refuse what is about to expire; whoever signs later than that signs for nothing.
REMAINING_S_MIN = 4


class FeeBudget(Protocol):
    """The day's budget of sponsored fees. Its count survives a restart and is shared by all replicas."""

    async def reserve(self, amount: BaseUnits, *, tx_hash: str) -> bool:
        """Set the worst case of a transaction aside; False where the budget does not allow it.

        Durable when it returns. The same transaction again is the same reservation.
        """
        ...

    async def settle(self, fee: BaseUnits, *, tx_hash: str) -> None:
        """A transaction was mined and cost ``fee``: what it had reserved beyond that is free again.

        Repeatable, and also called for transactions that were never reserved here.
        """
        ...


def check(transaction: TempoTransaction, *, chain_id: int, fee_token: str, now_s: int) -> None:
    """Raises `TransactionRefused` unless we may sign for the fees of ``transaction``.

    What it calls is checked elsewhere. Only an expiring nonce is sponsored: a transaction on an ordered
    nonce could be kept back until the payer wants it, and made invalid at will.
    """
    if transaction.nonce_key != EXPIRING_NONCE_KEY or transaction.valid_before is None:
        raise TransactionRefused("a sponsored transaction needs an expiring nonce and validBefore")
    if transaction.valid_before > now_s + VALIDITY_S_MAX:
        raise TransactionRefused(f"a sponsored transaction is valid for at most {VALIDITY_S_MAX} s")
    if transaction.valid_before < now_s + REMAINING_S_MIN:
        raise TransactionRefused("the transaction expires too soon")
    if transaction.gas > GAS_MAX:
        raise TransactionRefused(f"a sponsored transaction may use {GAS_MAX} gas")
    priority_max = PRIORITY_FEE_PER_GAS_MAX_BY_CHAIN.get(chain_id, PRIORITY_FEE_PER_GAS_MAX)
    if transaction.max_fee_per_gas > FEE_PER_GAS_MAX or transaction.max_priority_fee_per_gas > priority_max:
        raise TransactionRefused("the transaction offers more per gas than is sponsored")
    if transaction.fee_max > FEE_MAX:
        raise TransactionRefused(f"a sponsored transaction may cost {FEE_MAX} base units")
    if transaction.fee_token not in {None, fee_token}:
        raise TransactionRefused("fees are sponsored in the channel's token only")
