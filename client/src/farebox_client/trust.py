"""Whom this wallet pays: chains, escrows, tokens and payees that the caller named. Pure.

A deposit goes to a contract and comes back by its rules alone, so an escrow, a token and a chain are never
taken from a server. A payee can be taken on first use if the caller says so: it is then pinned in the store.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from farebox_client.challenge import Offer
from farebox_client.channel import RESERVE
from farebox_client.errors import NotTrusted
from farebox_client.hexadecimal import address

_PORTS = {"http": 80, "https": 443}

# Returns the payee that was pinned for an origin, after pinning this one if there was none.
Pin = Callable[[str, str], str]


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL, as trust is keyed: ``https://api.example:443``. Raises `ValueError`."""
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise ValueError(f"{url!r} is not an http or https URL")
    return f"{parts.scheme}://{parts.hostname.lower()}:{port}"


@dataclass(frozen=True, slots=True)
class Trust:
    """What may be paid, to whom, and through which node.

    ``rpc_urls``: chain id to the URL of a node that the caller trusts to tell the truth about that chain.
    ``tokens``: chain id to USD tokens. ``payees``: origin (or any URL of it) to addresses.
    ``escrows``: chain id to contracts; the channel reserve of Tempo is known and need not be named.
    Raises `ValueError` for addresses and URLs that are none.
    """

    rpc_urls: Mapping[int, str]
    tokens: Mapping[int, Iterable[str]]
    payees: Mapping[str, Iterable[str]] = field(default_factory=dict)
    escrows: Mapping[int, Iterable[str]] = field(default_factory=dict)
    trust_on_first_use: bool = False

    def __post_init__(self) -> None:
        def clean(names: Iterable[str]) -> frozenset[str]:
            if isinstance(names, str):
                raise ValueError(f"expected a list of addresses, not the one string {names!r}")
            return frozenset(address(each) for each in names)

        for url in self.rpc_urls.values():
            origin_of(url)
        for name, value in {
            "tokens": {chain: clean(names) for chain, names in self.tokens.items()},
            "escrows": {chain: clean(names) for chain, names in self.escrows.items()},
            "payees": {origin_of(url): clean(names) for url, names in self.payees.items()},
        }.items():
            object.__setattr__(self, name, value)

    def check(self, offer: Offer, *, origin: str, pin: Pin) -> None:
        """Accept the offer or raise `NotTrusted`, saying what to add. ``pin`` is asked on first use alone."""
        chain = offer.chain_id
        if chain not in self.rpc_urls:
            raise NotTrusted(
                f"{origin} wants to be paid on chain {chain}, which this wallet has no node for. If that is right, "
                f"add Trust(rpc_urls={{{chain}: 'https://...'}}), or --rpc-url on the command line."
            )
        known = {RESERVE} if offer.kind == "tempo-v2" else set(self.escrows.get(chain, ()))
        if offer.kind == "tempo-v2":
            known |= set(self.escrows.get(chain, ()))
        if offer.escrow not in known:
            raise NotTrusted(
                f"{origin} wants the deposit in escrow {offer.escrow} on chain {chain}, which is not trusted. If that "
                f"is right, add Trust(escrows={{{chain}: ['{offer.escrow}']}}), or --escrow on the command line."
            )
        if offer.token not in self.tokens.get(chain, ()):
            raise NotTrusted(
                f"{origin} wants to be paid in token {offer.token} on chain {chain}, which is not trusted. If that "
                f"is right, add Trust(tokens={{{chain}: ['{offer.token}']}}), or --token on the command line."
            )
        self._check_payee(offer, origin, pin)

    def _check_payee(self, offer: Offer, origin: str, pin: Pin) -> None:
        named = self.payees.get(origin)
        if named is not None and offer.payee in named:
            return
        if named is None and self.trust_on_first_use:
            pinned = pin(origin, offer.payee)
            if pinned == offer.payee:
                return
            raise NotTrusted(
                f"{origin} now wants to pay {offer.payee}, but {pinned} was its payee on first use. If the change is "
                f"right, add Trust(payees={{'{origin}': ['{offer.payee}']}}), or --payee on the command line."
            )
        raise NotTrusted(
            f"{origin} wants to pay {offer.payee}, which is not a payee that is trusted there. If that is right, "
            f"add Trust(payees={{'{origin}': ['{offer.payee}']}}), or --payee on the command line."
        )
