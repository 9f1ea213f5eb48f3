import pytest
from sqlalchemy import Engine, event, select, text

from app.errors import InvalidRequest, NotFound
from app.money import NanoUsd, parse_usd
from app.rails.customer_store import CustomerStore
from app.tables import accounts, customers
from tests.clocks import FakeClock
from tests.reconcile.books import LiveBooks


@pytest.fixture
def store(engine: Engine, clock: FakeClock) -> CustomerStore:
    return CustomerStore(engine, clock)


def test_a_customer_begins_with_an_empty_account(store: CustomerStore) -> None:
    customer = store.create("Ada")
    assert customer.balance() == {
        "available": "0.00",
        "held": "0.00",
        "spent": "0.00",
        "credit_limit": "0.00",
        "currency": "USD",
    }
    assert store.read(customer.id) == customer


def test_no_customer_is_left_without_its_account(engine: Engine, store: CustomerStore) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def _fail(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("INSERT INTO accounts"):
            raise RuntimeError("the machine stops here")

    with pytest.raises(RuntimeError):
        store.create("Ada")
    event.remove(engine, "before_cursor_execute", _fail)
    with engine.connect() as connection:
        assert connection.execute(select(customers)).all() == []
        assert connection.execute(select(accounts)).all() == []


def test_spent_is_usage_alone(engine: Engine, clock: FakeClock) -> None:
    books = LiveBooks(engine, clock)
    customer, key = books.customer(credit="1.00")
    books.served(key, "req_1")
    books.refund(customer.id, "0.25")
    books.admit(key, "req_2", amount=1000)
    now = books.customers.read(customer.id)
    assert now.spent == books.charge_of_one
    assert now.held == 1000
    assert now.available == parse_usd("0.75") - books.charge_of_one - 1000


def test_spent_adds_up_all_of_a_customers_keys_and_nobody_elses(engine: Engine, clock: FakeClock) -> None:
    books = LiveBooks(engine, clock)
    customer, key = books.customer(credit="1.00")
    second = books.key(customer.id)
    _, foreign = books.customer(credit="1.00")
    for number, payer in enumerate((key, second, foreign)):
        books.served(payer, f"req_{number}")
    books.keys.revoke(second.key_id)
    assert books.customers.read(customer.id).spent == 2 * books.charge_of_one


def test_a_credit_limit_can_be_used(store: CustomerStore) -> None:
    customer = store.create("Ada")
    limited = store.set_credit_limit(customer.id, parse_usd("3.00"))
    assert (limited.available, limited.credit_limit) == (parse_usd("3.00"), parse_usd("3.00"))


def test_a_change_of_the_limit_bumps_the_version_that_the_journal_writes_on(
    engine: Engine, store: CustomerStore
) -> None:
    customer = store.create("Ada")
    store.set_credit_limit(customer.id, NanoUsd(1))
    with engine.connect() as connection:
        assert connection.execute(select(accounts.c.version)).scalar_one() == 1


def test_a_credit_limit_cannot_fall_below_what_of_it_is_used_or_held(engine: Engine, clock: FakeClock) -> None:
    books = LiveBooks(engine, clock)
    customer, key = books.customer(credit=None, credit_limit="1.00")
    books.admit(key, "req_1", amount=1000)
    with pytest.raises(InvalidRequest, match=r"0\.000001 USD") as caught:
        books.customers.set_credit_limit(customer.id, NanoUsd(999))
    assert caught.value.param == "credit_limit"
    assert books.customers.set_credit_limit(customer.id, NanoUsd(1000)).available == 0


@pytest.mark.parametrize("limit", [-1, 10**15 + 1])
def test_a_credit_limit_is_never_negative_and_bounded(store: CustomerStore, limit: int) -> None:
    customer = store.create("Ada")
    with pytest.raises(InvalidRequest):
        store.set_credit_limit(customer.id, NanoUsd(limit))
    with pytest.raises(InvalidRequest):
        store.create("Bob", credit_limit=NanoUsd(limit))


@pytest.mark.parametrize("customer_id", ["cus_none", "", "\x00", "c" * 300])
def test_an_unknown_customer_is_not_found(store: CustomerStore, customer_id: str) -> None:
    with pytest.raises(NotFound):
        store.read(customer_id)
    with pytest.raises(NotFound):
        store.set_credit_limit(customer_id, NanoUsd(1))


def test_customers_are_listed_in_pages(clock: FakeClock, store: CustomerStore) -> None:
    made = []
    for name in ("a", "b", "c"):
        made.append(store.create(name).id)
        clock.advance(1)
    assert [customer.id for customer in store.list()] == made
    assert [customer.id for customer in store.list(after=made[0], limit=1)] == made[1:2]


def test_reading_a_balance_reads_no_transfers(engine: Engine, clock: FakeClock) -> None:
    books = LiveBooks(engine, clock)
    customer, key = books.customer(credit="1.00")
    books.served(key, "req_1")
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(text("DELETE FROM transfers"))
        connection.execute(text("DELETE FROM outcomes"))
    assert books.customers.read(customer.id).spent == books.charge_of_one
