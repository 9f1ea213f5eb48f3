"""Which backend a channel lives on, and what its workers are named after."""

from collections.abc import Iterator, Sequence

from app.chain.backend import ChannelBackend
from app.channels.store import ChannelRecord, FundingRecord
from app.settings import MppSettings


class Places:
    """The backends of one process, found by what the rows say."""

    def __init__(self, backends: Sequence[ChannelBackend], settings: MppSettings) -> None:
        self._backends = tuple(backends)
        # By what cannot change under a channel: two entries may share an escrow and differ in the token.
        self._confirmations: dict[tuple[str, int, str, str], int] = {
            (entry.backend, entry.chain_id, entry.escrow.lower(), entry.currency.lower()): entry.confirmations
            for entry in settings.channels
        }

    def __iter__(self) -> Iterator[ChannelBackend]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)

    def of(self, record: ChannelRecord) -> ChannelBackend | None:
        """The backend of a channel; None where its kind is not offered any more."""
        kind = (record.backend, record.chain_id, record.escrow)
        money = (record.descriptor.token, record.descriptor.payee)
        for backend in self._backends:
            offer = backend.offer
            if (offer.backend, offer.chain_id, offer.escrow) == kind and (offer.currency, offer.recipient) == money:
                return backend
        return None

    def serves(self, backend: ChannelBackend, funding: FundingRecord) -> bool:
        """Whether a funding is one of ``backend``'s."""
        offer, descriptor = backend.offer, funding.descriptor
        return (offer.backend, offer.escrow, offer.currency, offer.recipient) == (
            funding.backend,
            funding.escrow,
            descriptor.token,
            descriptor.payee,
        )

    def confirmations(self, backend: ChannelBackend) -> int:
        """Blocks, its own included, until a transaction counts."""
        offer = backend.offer
        return self._confirmations.get((offer.backend, offer.chain_id, offer.escrow, offer.currency), 1)


def account_name(backend: ChannelBackend) -> str:
    """The settlement account on its chain: one key has a nonce of its own on each."""
    return f"{backend.offer.chain_id}:{backend.account.lower()}"


def watch_name(backend: ChannelBackend) -> str:
    """What a backend's reading position is kept under."""
    offer = backend.offer
    return f"{offer.backend}:{offer.chain_id}:{offer.escrow}:{offer.currency}:{offer.recipient}"
