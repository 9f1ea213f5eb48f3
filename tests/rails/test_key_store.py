import hashlib
import hmac
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select, text

from app.clock import EpochMs
from app.errors import AuthenticationFailed, InvalidRequest, NotFound
from app.ledger.account import REVENUE
from app.ledger.budget import KeyCondition
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Admit, Admitted, Refused, Result
from app.money import NanoUsd, PicoUsd
from app.rails import key_store
from app.rails.api_key import ApiKeyRail
from app.rails.customer_store import CustomerStore
from app.rails.key_store import KeyIdentity, KeyLimits, KeyStore
from app.routing.wishes import NO_WISHES, Wishes
from app.tables import api_keys
from tests.clocks import FakeClock

PEPPER = b"a pepper of thirty-two bytes....."
MS_PER_DAY = 86_400_000


@pytest.fixture
def keys(engine: Engine, clock: FakeClock) -> KeyStore:
    return KeyStore(engine, clock, PEPPER)


@pytest.fixture
def customer_id(engine: Engine, clock: FakeClock) -> str:
    return CustomerStore(engine, clock).create("Ada", credit_limit=NanoUsd(10**9)).id


def hold(engine: Engine, clock: FakeClock, identity: KeyIdentity, *, model: str = "m") -> Result:
    """Try to pay with an identity, as a paid request does."""
    condition = KeyCondition(identity.key_id, identity.key_hash, model, 1)
    row = ("req_1", identity.account_id, identity.key_id, "/v1/chat/completions", model, False, 1, 1, 5, clock.now_ms())
    store = JournalStore(engine, clock)
    admit = Admit("req_1", identity.account_id, REVENUE, "own_1", NanoUsd(5), NanoUsd(5), row, condition)
    result = store.apply([admit])[0]
    store.close()
    return result


def test_a_key_is_stored_only_as_its_keyed_hash(engine: Engine, keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "laptop", KeyLimits())
    with engine.connect() as connection:
        row = connection.execute(select(api_keys)).one()
    assert row.hash == hmac.new(PEPPER, secret.encode(), hashlib.sha256).hexdigest()
    assert secret.startswith("sk-fb-")
    assert secret[10:-4] not in repr(row)
    assert secret[10:-4] not in repr(record)
    assert record.hint == f"{secret[:10]}...{secret[-4:]}"


def test_keys_have_256_random_bits(keys: KeyStore, customer_id: str) -> None:
    secrets = {keys.create(customer_id, "k", KeyLimits())[1] for _ in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {len("sk-fb-") + 43}


def test_identify_finds_whose_key_it_is(keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    identity = keys.identify(secret)
    assert identity is not None
    assert (identity.key_id, identity.customer_id) == (record.id, customer_id)
    assert identity.account_id == f"customer:{customer_id}"


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "sk-fb-",
        "sk-fb-" + "A" * 43,
        "sk-xx-" + "A" * 43,
        "sk-fb-" + "é" * 43,
        "\x00" * 49,
        "sk-fb-" + "\ud800" * 43,
    ],
)
def test_what_is_no_key_of_ours_is_unknown(keys: KeyStore, secret: str) -> None:
    assert keys.identify(secret) is None
    with pytest.raises(AuthenticationFailed):
        keys.authenticate(secret)


def test_a_key_hashed_with_another_pepper_is_unknown(
    engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str
) -> None:
    _, secret = keys.create(customer_id, "k", KeyLimits())
    assert KeyStore(engine, clock, b"another pepper of 32 bytes.......").identify(secret) is None


def test_identities_are_remembered_within_a_bound(
    keys: KeyStore, customer_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store, "IDENTITIES_MAX", 2)
    secrets = [keys.create(customer_id, "k", KeyLimits())[1] for _ in range(3)]
    keys.identify(secrets[0])
    keys.identify(secrets[1])
    keys.identify(secrets[0])
    keys.identify(secrets[2])
    assert [keys.cached(secret) is not None for secret in secrets] == [True, False, True]


def test_unknown_keys_are_never_remembered(keys: KeyStore) -> None:
    unknown = "sk-fb-" + "A" * 43
    keys.identify(unknown)
    assert keys.cached(unknown) is None


def test_a_revoked_key_buys_nothing_even_where_it_is_remembered(
    engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str
) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    identity = keys.identify(secret)
    KeyStore(engine, clock, PEPPER).revoke(record.id)  # Another process.
    assert keys.identify(secret) == identity
    assert identity is not None
    assert hold(engine, clock, identity) == Refused("revoked")
    with pytest.raises(AuthenticationFailed, match="revoked"):
        keys.authenticate(secret)


def test_a_revoked_key_is_forgotten_where_it_was_revoked(keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    keys.identify(secret)
    keys.revoke(record.id)
    assert keys.cached(secret) is None
    assert keys.identify(secret) is None


def test_revoking_twice_keeps_the_first_moment(clock: FakeClock, keys: KeyStore, customer_id: str) -> None:
    record, _ = keys.create(customer_id, "k", KeyLimits())
    first = keys.revoke(record.id)
    clock.advance(1000)
    assert keys.revoke(record.id) == first
    assert first.revoked_at_ms == EpochMs(clock.now_ms() - 1000)


def test_rotation_stops_the_old_secret_at_once(
    engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str
) -> None:
    record, old = keys.create(customer_id, "k", KeyLimits(spend_limit=NanoUsd(7)))
    remembered = keys.identify(old)
    rotated, new = KeyStore(engine, clock, PEPPER).rotate(record.id)
    assert remembered is not None
    assert hold(engine, clock, remembered) == Refused("revoked")
    with pytest.raises(AuthenticationFailed):
        keys.authenticate(old)
    assert keys.authenticate(new).id == record.id
    assert rotated == replace(record, hint=rotated.hint)
    identity = keys.identify(new)
    assert identity is not None
    assert isinstance(hold(engine, clock, identity), Admitted)


def test_a_revoked_key_cannot_be_rotated_back_to_life(keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    keys.revoke(record.id)
    with pytest.raises(InvalidRequest, match="revoked"):
        keys.rotate(record.id)
    assert keys.identify(secret) is None


def test_every_change_bumps_the_version_that_the_journal_writes_on(
    engine: Engine, keys: KeyStore, customer_id: str
) -> None:
    record, _ = keys.create(customer_id, "k", KeyLimits())
    versions = []
    for change in (keys.rotate, lambda key_id: keys.set_limits(key_id, KeyLimits()), keys.revoke):
        change(record.id)
        with engine.connect() as connection:
            versions.append(connection.execute(select(api_keys.c.version)).scalar_one())
    assert versions == [1, 2, 3]


def test_limits_are_kept_as_given(clock: FakeClock, keys: KeyStore, customer_id: str) -> None:
    limits = KeyLimits(
        spend_limit=NanoUsd(5_000_000_000),
        spend_limit_month=NanoUsd(1),
        requests_per_minute=60,
        tokens_per_minute=10_000,
        models=("a/b", "c"),
        expires_at_ms=EpochMs(clock.now_ms() + 1),
    )
    record, _ = keys.create(customer_id, "k", limits)
    assert keys.read(record.id).limits == limits
    assert keys.set_limits(record.id, KeyLimits()).limits == KeyLimits()


def test_new_limits_hold_for_the_next_hold(engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    identity = keys.identify(secret)
    assert identity is not None
    keys.set_limits(record.id, KeyLimits(models=("other",)))
    assert hold(engine, clock, identity) == Refused("model_not_allowed")
    keys.set_limits(record.id, KeyLimits(spend_limit=NanoUsd(4)))
    assert hold(engine, clock, identity) == Refused("spend_limit", available=NanoUsd(4), required=NanoUsd(5))


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"spend_limit": NanoUsd(0)}, "spend_limit"),
        ({"spend_limit_month": NanoUsd(-1)}, "spend_limit_month"),
        ({"spend_limit": NanoUsd(10**15 + 1)}, "spend_limit"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": 10**12 + 1}, "tokens_per_minute"),
        ({"expires_at_ms": EpochMs(0)}, "expires_at_ms"),
        ({"expires_at_ms": EpochMs(253_402_300_800_000)}, "expires_at_ms"),
        ({"models": ()}, "models"),
        ({"models": ("a", "b\n")}, "models"),
        ({"models": ("a", "\x00")}, "models"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(limits: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        KeyLimits(**limits)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_an_expiry_in_the_past_is_refused(clock: FakeClock, keys: KeyStore, customer_id: str) -> None:
    with pytest.raises(InvalidRequest, match="past"):
        keys.create(customer_id, "k", KeyLimits(expires_at_ms=clock.now_ms()))


def test_an_expired_key_is_refused(clock: FakeClock, keys: KeyStore, customer_id: str) -> None:
    _, secret = keys.create(customer_id, "k", KeyLimits(expires_at_ms=EpochMs(clock.now_ms() + 1000)))
    clock.advance(999)
    keys.authenticate(secret)
    clock.advance(1)
    with pytest.raises(AuthenticationFailed, match="expired"):
        keys.authenticate(secret)


def test_counters_of_a_past_month_and_minute_show_as_zero(
    engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str
) -> None:
    record, _ = keys.create(customer_id, "k", KeyLimits())
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(
            text("UPDATE api_keys SET spent = 9, spent_month = 9, minute_requests = 2, minute_tokens = 3")
        )
    now = keys.read(record.id)
    assert (now.spent_month, now.minute_requests, now.minute_tokens) == (9, 2, 3)
    clock.advance(31 * MS_PER_DAY)
    later = keys.read(record.id)
    assert (later.spent, later.spent_month, later.minute_requests, later.minute_tokens) == (9, 0, 0, 0)


@pytest.mark.parametrize("key_id", ["key_none", "", "key_\x00", "k" * 300, "schlüssel"])
def test_an_unknown_id_is_not_found(keys: KeyStore, key_id: str) -> None:
    for act in (keys.read, keys.rotate, keys.revoke):
        with pytest.raises(NotFound):
            act(key_id)
    with pytest.raises(NotFound):
        keys.set_limits(key_id, KeyLimits())


@pytest.mark.parametrize("customer", ["cus_none", "\x00"])
def test_a_key_needs_a_customer(keys: KeyStore, customer: str) -> None:
    with pytest.raises(NotFound):
        keys.create(customer, "k", KeyLimits())


@pytest.mark.parametrize("label", ["", "  ", "a\nb", "\x1b[31m", "\x00", "x" * 201, "\ud800"])
def test_labels_are_short_and_printable(keys: KeyStore, customer_id: str, label: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        keys.create(customer_id, label, KeyLimits())
    assert caught.value.param == "label"


def test_keys_are_listed_by_customer_and_in_pages(
    engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str
) -> None:
    other = CustomerStore(engine, clock).create("Bob").id
    mine = []
    for _ in range(3):
        mine.append(keys.create(customer_id, "mine", KeyLimits())[0].id)
        keys.create(other, "theirs", KeyLimits())
        clock.advance(1)
    assert [key.id for key in keys.list(customer_id)] == mine
    assert [key.id for key in keys.list(customer_id, after=mine[0], limit=1)] == mine[1:2]
    assert len(keys.list()) == 6


# Routing.

WISHES = Wishes(strategy="cheapest", max_input=PicoUsd(500_000), max_output=PicoUsd(10_000), only=("a",))


def test_routing_is_kept_and_comes_with_the_identity(keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits(), routing=WISHES)
    identity = keys.identify(secret)
    assert identity is not None
    assert (record.routing, keys.read(record.id).routing, identity.routing) == (WISHES,) * 3
    assert record.to_dict()["routing"] == {
        "routing_strategy": "cheapest",
        "max_input_price_per_million": 50,
        "max_output_price_per_million": 1,
        "provider": {"only": ["a"]},
    }


def test_key_without_routing_has_none(engine: Engine, keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    identity = keys.identify(secret)
    assert identity is not None
    assert identity.routing is None
    assert record.to_dict()["routing"] is None
    with engine.connect() as connection:
        assert connection.execute(select(api_keys.c.routing)).scalar_one() is None


def test_routing_is_changed_with_limits_only_where_it_is_given(keys: KeyStore, customer_id: str) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits(), routing=WISHES)
    assert keys.identify(secret) is not None
    assert keys.set_limits(record.id, KeyLimits(requests_per_minute=5)).routing == WISHES
    assert keys.set_limits(record.id, KeyLimits(), routing=NO_WISHES).routing == NO_WISHES
    identity = keys.identify(secret)
    assert identity is not None
    assert identity.routing is None


def test_routing_changed_by_another_process_is_seen_soon(
    engine: Engine, clock: FakeClock, keys: KeyStore, customer_id: str
) -> None:
    record, secret = keys.create(customer_id, "k", KeyLimits())
    assert keys.identify(secret) is not None
    KeyStore(engine, clock, PEPPER).set_limits(record.id, KeyLimits(), routing=WISHES)
    clock.advance(int(key_store.IDENTITY_S_MAX * 1000) - 1)
    assert keys.cached(secret) is not None
    clock.advance(1)
    assert keys.cached(secret) is None
    identity = keys.identify(secret)
    assert identity is not None
    assert identity.routing == WISHES


async def test_payer_of_a_key_brings_its_routing(keys: KeyStore, customer_id: str) -> None:
    _, secret = keys.create(customer_id, "k", KeyLimits(), routing=WISHES)
    payer = await ApiKeyRail(keys).authenticate({b"x-api-key": secret.encode()})
    assert payer.routing == WISHES
