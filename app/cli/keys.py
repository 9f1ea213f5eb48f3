"""``farebox keys``: make, look at, limit, rotate and revoke API keys."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import emit, record, table
from app.cli.session import AsJson, Config, amount, open_books

if TYPE_CHECKING:
    from app.clock import EpochMs
    from app.rails.key_store import KeyLimits
    from app.routing.wishes import Wishes

app = typer.Typer(help="API keys: what clients pay with.", no_args_is_help=True)

UNLIMITED = "none"
_COLUMNS = {
    "id": "ID",
    "customer_id": "CUSTOMER",
    "label": "LABEL",
    "hint": "KEY",
    "spent": "SPENT",
    "spend_limit": "LIMIT",
    "expires_at": "EXPIRES",
    "revoked_at": "REVOKED",
}

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, key_...")]
SpendLimit = Annotated[str | None, typer.Option("--spend-limit", metavar="USD", help="The most it may ever spend.")]
SpendLimitMonth = Annotated[
    str | None, typer.Option("--spend-limit-month", metavar="USD", help="The most it may spend in a calendar month.")
]
RequestsPerMinute = Annotated[str | None, typer.Option("--requests-per-minute", metavar="N", help="Requests a minute.")]
TokensPerMinute = Annotated[str | None, typer.Option("--tokens-per-minute", metavar="N", help="Tokens a minute.")]
Models = Annotated[str | None, typer.Option("--models", metavar="A,B", help="The only models that it may use.")]
Expires = Annotated[str | None, typer.Option("--expires", metavar="30d|DATE", help="When it stops: a span or a date.")]

Routing = Annotated[
    list[str] | None,
    typer.Option(
        "--routing",
        metavar="NAME=VALUE",
        help="Of its requests that do not say it themselves, such as routing_strategy=cheapest or provider.only=a,b.",
    ),
]


@app.command(epilog="Example: farebox keys create --label laptop --credit 5.00 --spend-limit-month 20")
def create(
    *,
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="CUSTOMER_ID", help="Whose key; a new customer when left out.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="A name for people.")] = "key",
    credit: Annotated[
        str | None, typer.Option("--credit", metavar="USD", help="Grant the customer this much first.")
    ] = None,
    spend_limit: SpendLimit = None,
    spend_limit_month: SpendLimitMonth = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    models: Models = None,
    expires: Expires = None,
    routing: Routing = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once: only its hash is kept."""
    with open_books(config, create=True) as books:
        from app.ledger.ids import new_id
        from app.ledger.transfer import GRANT
        from app.rails import funds
        from app.rails.key_store import KeyLimits
        from app.routing.wishes import NO_WISHES

        now = books.clock.now_ms()
        given = _given(
            spend_limit, spend_limit_month, requests_per_minute, tokens_per_minute, models=models, expires=expires
        )
        limits = _limits(KeyLimits(), given, now=now)
        wishes = _routing(NO_WISHES, routing or ())
        granted = amount(credit, param="--credit") if credit is not None else None
        keys, customers = books.keys(), books.customers()
        customer_id = customers.read(customer).id if customer else customers.create(label).id
        if granted:
            # Before the key, so that a key that is shown can pay.
            books.post(
                funds.credit(
                    credit_id=new_id("grant", now),
                    customer_id=customer_id,
                    amount=granted,
                    kind=GRANT,
                    note="with a new key",
                    at=now,
                )
            )
        key, secret = keys.create(customer_id, label, limits, routing=wishes)
        balance = customers.read(customer_id).balance()
        body = {**key.to_dict(), "key": secret, "available": balance["available"]}
        shown = {
            "key": secret,
            "id": key.id,
            "label": key.label,
            "customer": customer_id,
            "available": f"{balance['available']} USD",
        }
        emit(body, as_json=as_json, text=record(shown) + "\n\nThe key is not shown again: only its hash is kept.")


@app.command("list")
def list_keys(
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="CUSTOMER_ID", help="Only this customer's keys.")
    ] = None,
    after: Annotated[str, typer.Option("--after", metavar="KEY_ID", help="Begin after this key.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first, 1000 at a time."""
    with open_books(config) as books:
        rows = [key.to_dict() for key in books.keys().list(customer, after=after)]
        emit({"keys": rows}, as_json=as_json, text=table(rows, _COLUMNS, empty="no keys"))


@app.command()
def show(key_id: KeyId, config: Config = None, as_json: AsJson = False) -> None:
    """Show one key's limits, its routing and what it spent."""
    with open_books(config) as books:
        body = books.keys().read(key_id).to_dict()
        emit(body, as_json=as_json, text=record(body))


@app.command(epilog="Example: farebox keys limit key_01... --spend-limit-month 50 --expires none")
def limit(
    key_id: KeyId,
    *,
    spend_limit: SpendLimit = None,
    spend_limit_month: SpendLimitMonth = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    models: Models = None,
    expires: Expires = None,
    routing: Routing = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Change a key's limits and routing; those left out stay, and `none` takes one away."""
    with open_books(config) as books:
        keys = books.keys()
        given = _given(
            spend_limit, spend_limit_month, requests_per_minute, tokens_per_minute, models=models, expires=expires
        )
        old = keys.read(key_id)
        limits = _limits(old.limits, given, now=books.clock.now_ms())
        wishes = _routing(old.routing, routing) if routing else None
        body = keys.set_limits(key_id, limits, routing=wishes).to_dict()
        emit(body, as_json=as_json, text=record(body))


@app.command()
def rotate(key_id: KeyId, config: Config = None, as_json: AsJson = False) -> None:
    """Give a key a new secret; the old one stops at once."""
    with open_books(config) as books:
        key, secret = books.keys().rotate(key_id)
        text = f"key  {secret}\n\nThe old secret of {key.id} no longer works. The new one is not shown again."
        emit({**key.to_dict(), "key": secret}, as_json=as_json, text=text)


@app.command()
def revoke(key_id: KeyId, config: Config = None, as_json: AsJson = False) -> None:
    """Stop a key at once and for good."""
    with open_books(config) as books:
        body = books.keys().revoke(key_id).to_dict()
        emit(body, as_json=as_json, text=f"{key_id} is revoked; it can no longer pay")


def _given(
    spend_limit: str | None,
    spend_limit_month: str | None,
    requests_per_minute: str | None,
    tokens_per_minute: str | None,
    *,
    models: str | None,
    expires: str | None,
) -> dict[str, str]:
    options = {
        "spend_limit": spend_limit,
        "spend_limit_month": spend_limit_month,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "models": models,
        "expires_at_ms": expires,
    }
    return {name: text for name, text in options.items() if text is not None}


def _limits(old: "KeyLimits", given: dict[str, str], *, now: "EpochMs") -> "KeyLimits":
    from dataclasses import replace

    from app.reconcile.period import parse_expiry

    changed: dict[str, Any] = {}
    for name, text in given.items():
        if text == UNLIMITED:
            changed[name] = None
        elif name.startswith("spend"):
            changed[name] = amount(text, param=name)
        elif name == "models":
            changed[name] = tuple(part.strip() for part in text.split(",") if part.strip())
        elif name == "expires_at_ms":
            changed[name] = parse_expiry(text, now=now, param="--expires")
        else:
            changed[name] = _whole(text, param=name)
    return replace(old, **changed)


def _routing(old: "Wishes", given: Iterable[str]) -> "Wishes":
    """The old wishes with the given ones in their place; ``none`` alone takes all away."""
    from app.errors import InvalidRequest
    from app.routing.defaults import parameters_of, wishes_of

    parameters = parameters_of(old)
    provider: dict[str, Any] = parameters.pop("provider", {})
    for text in given:
        name, equals, value = text.partition("=")
        if text == UNLIMITED:
            parameters, provider = {}, {}
            continue
        if not equals:
            raise InvalidRequest(f"--routing takes NAME=VALUE, or {UNLIMITED}; not {text!r}", param="--routing")
        member = name.removeprefix("provider.")
        (parameters if member == name else provider)[member] = _routing_value(member, value.strip())
    return wishes_of({**parameters, "provider": provider}, param="--routing")


def _routing_value(name: str, text: str) -> Any:
    """As JSON would have it: a text that is none of this is left to be refused by name."""
    if text == UNLIMITED:
        return None
    if name in ("order", "only", "ignore"):
        return [part.strip() for part in text.split(",") if part.strip()]
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else text


def _whole(text: str, *, param: str) -> int:
    from app.errors import InvalidRequest

    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidRequest(f"{param} must be a whole number or {UNLIMITED}", param=param)
    return int(text)
