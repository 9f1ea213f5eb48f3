"""From settings to backends: which class, what it offers, and what cannot be."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import httpx

from app.chain.backend import ChannelBackend, Offer
from app.chain.charge import ChargeClaims, TempoCharge
from app.chain.evm import Evm
from app.chain.rpc import Rpc
from app.chain.signer import Signer
from app.chain.sponsorship import FeeBudget
from app.chain.tempo_v1 import TempoV1
from app.chain.tempo_v2 import TempoV2
from app.clock import Clock
from app.mpp.voucher import VoucherDomain
from app.settings import ChannelSettings, MppSettings, SettingsError


class _Kind(NamedTuple):
    backend: type[TempoV2 | TempoV1 | Evm]
    domain_name: str
    amount_bits: int


_KINDS: Final[Mapping[str, _Kind]] = {
    "tempo-v2": _Kind(TempoV2, "TIP20 Channel Reserve", 96),
    "tempo-v1": _Kind(TempoV1, "Tempo Stream Channel", 128),
    "evm": _Kind(Evm, "EVM Payment Channel", 128),
}


def backend_for(
    settings: ChannelSettings,
    mpp: MppSettings,
    *,
    payee_key: bytes,
    clock: Clock,
    budget: FeeBudget,
    transport: httpx.AsyncBaseTransport | None = None,
) -> ChannelBackend:
    """The backend of one ``[[mpp.channels]]`` entry. Nothing is asked of the node before `ChannelBackend.check`.

    ``payee_key`` is 32 bytes; ``budget`` counts the fees that we pay for clients. Raises `SettingsError`.
    """
    try:
        signer = Signer(payee_key)
    except ValueError as error:
        raise SettingsError(f"{settings.payee_key_env}: {error}") from error
    offer = offer_of(settings, account=signer.address)
    node = Rpc(settings.rpc_url, chain_id=settings.chain_id, timeout_s=mpp.rpc_timeout_s, transport=transport)
    kind = _KINDS[settings.backend].backend
    return kind(settings, mpp, offer=offer, signer=signer, node=node, clock=clock, budget=budget)


def charge_for(
    settings: ChannelSettings,
    mpp: MppSettings,
    *,
    backend: ChannelBackend,
    claims: ChargeClaims,
    clock: Clock,
    transport: httpx.AsyncBaseTransport | None = None,
) -> TempoCharge:
    """One-shot payments on the chain of a Tempo entry, next to its ``backend``. Raises `SettingsError` for ``evm``."""
    if backend.offer.method != "tempo":
        raise SettingsError(f"mpp.channels ({settings.backend}): charges are taken on Tempo only")
    node = Rpc(settings.rpc_url, chain_id=settings.chain_id, timeout_s=mpp.rpc_timeout_s, transport=transport)
    return TempoCharge(backend, node=node, claims=claims, clock=clock)


def offer_of(settings: ChannelSettings, *, account: str) -> Offer:
    """What an entry's challenges offer, with ``account`` signing settlements. Raises `SettingsError`."""
    name = f"mpp.channels ({settings.backend})"
    recipient = (settings.recipient or account).lower()
    if recipient != account and settings.backend != "tempo-v2":
        raise SettingsError(f"{name}: only the payee itself can settle: recipient must be {settings.payee_key_env}'s")
    if settings.foreign_escrow and settings.backend != "tempo-v1":
        raise SettingsError(f"{name}: foreign_escrow is for tempo-v1")
    if settings.eip3009 and settings.backend != "evm":
        raise SettingsError(f"{name}: eip3009 is for evm")
    if settings.fee_payer and settings.backend == "evm" and not settings.eip3009:
        raise SettingsError(f"{name}: fee_payer needs eip3009, by which we carry clients' deposits")
    kind = _KINDS[settings.backend]
    return Offer(
        backend=settings.backend,
        method="evm" if settings.backend == "evm" else "tempo",
        protocol="v2" if settings.backend == "tempo-v2" else "v1",
        chain_id=settings.chain_id,
        escrow=settings.escrow.lower(),
        currency=settings.currency.lower(),
        recipient=recipient,
        operator=account if recipient != account else None,
        fee_payer=settings.fee_payer,
        domain=VoucherDomain(
            name=kind.domain_name,
            chain_id=settings.chain_id,
            escrow=settings.escrow.lower(),
            amount_bits=kind.amount_bits,
        ),
        # Clients of v1 never add to a deposit by themselves.
        tops_up=settings.backend != "tempo-v1",
        captures_less=not settings.foreign_escrow,
    )
