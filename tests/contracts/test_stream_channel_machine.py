"""Random lives of channels: whatever happens, money is conserved and each side gets what it is owed.

A model says what each call must do, down to the error; the contract must do it. Some signatures are
those of strangers, some amounts are wrong, some callers are not who they should be.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.contracts.bench import GRACE_S, Bench, Record
from tests.contracts.node import Reverted

AMOUNTS = st.integers(0, 1_500)
CHANNELS_MAX = 3


@dataclass
class Model:
    """A channel as it must be."""

    deposit: int
    settled: int = 0
    requested_at: int = 0
    finalized: bool = False
    # The highest voucher that the payer ever signed, and what each side got.
    signed: int = 0
    paid: int = 0
    refunded: int = 0


@dataclass
class Call:
    """A call, and how the model takes it."""

    name: str
    arguments: tuple[Any, ...]
    sender: str
    refusals: list[tuple[bool, str]] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """The first refusal that applies."""
        return next((error for applies, error in self.refusals if applies), None)


class ChannelMachine(RuleBasedStateMachine):
    """Drives the escrow through one life and a model beside it."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.channels: dict[bytes, Model] = {}

    @initialize()
    def begin(self) -> None:
        """Everybody as at the beginning."""
        self.snapshot = self.bench.node.rpc("evm_snapshot")
        self.payer, self.payee = self.bench.payer.address, self.bench.payee
        self.now = self.bench.node.now()
        self.at_first = {who: self.bench.balance(who) for who in (self.payer, self.payee)}

    def teardown(self) -> None:
        """Put the chain back."""
        self.bench.node.rpc("evm_revert", self.snapshot)

    # What may happen.

    @precondition(lambda self: len(self.channels) < CHANNELS_MAX)
    @rule(deposit=st.integers(1, 1_000))
    def open(self, deposit: int) -> None:
        """A channel more."""
        self.tick(1)
        self.channels[self.bench.open(deposit)] = Model(deposit)

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), amount=AMOUNTS, wide=st.booleans(), by_payer=st.booleans())
    def top_up(self, data: st.DataObject, amount: int, wide: bool, by_payer: bool) -> None:
        """The payer adds, or somebody tries."""
        channel_id, model = self.pick(data)
        call = Call(
            f"topUp(bytes32,uint{256 if wide else 128})",
            (channel_id, amount),
            self.payer if by_payer else self.payee,
            [(model.finalized, "ChannelFinalized"), (not by_payer, "NotPayer"), (amount == 0, "ZeroDeposit")],
        )
        if self.done(call):
            model.deposit += amount
            model.requested_at = 0

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), amount=AMOUNTS, honest=st.booleans(), by_payee=st.booleans())
    def settle(self, data: st.DataObject, amount: int, honest: bool, by_payee: bool) -> None:
        """The payee settles a voucher."""
        channel_id, model = self.pick(data)
        call = Call(
            "settle",
            (channel_id, amount, self.voucher(channel_id, amount, honest=honest)),
            self.payee if by_payee else self.payer,
            [
                (model.finalized, "ChannelFinalized"),
                (not by_payee, "NotPayee"),
                (amount > model.deposit, "AmountExceedsDeposit"),
                (amount <= model.settled, "AmountNotIncreasing"),
                (not honest, "InvalidSignature"),
            ],
        )
        if self.done(call):
            model.paid += amount - model.settled
            model.settled = amount

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), amount=AMOUNTS, honest=st.booleans())
    def close(self, data: st.DataObject, amount: int, honest: bool) -> None:
        """The payee closes with a whole voucher."""
        channel_id, model = self.pick(data)
        call = Call(
            "close",
            (channel_id, amount, self.voucher(channel_id, amount, honest=honest)),
            self.payee,
            [
                (model.finalized, "ChannelFinalized"),
                (amount > model.deposit, "AmountExceedsDeposit"),
                (amount > model.settled and not honest, "InvalidSignature"),
            ],
        )
        if self.done(call):
            self.end(model, max(amount, model.settled))

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), amount=AMOUNTS, capture=AMOUNTS, honest=st.booleans(), by_payee=st.booleans())
    def close_with_capture(self, data: st.DataObject, amount: int, capture: int, honest: bool, by_payee: bool) -> None:
        """The payee closes with less than a voucher."""
        channel_id, model = self.pick(data)
        call = Call(
            "closeWithCapture",
            (channel_id, amount, capture, self.voucher(channel_id, amount, honest=honest)),
            self.payee if by_payee else self.payer,
            [
                (model.finalized, "ChannelFinalized"),
                (not model.settled <= capture <= amount, "CaptureAmountInvalid"),
                (not by_payee, "NotPayee"),
                (capture > model.deposit, "AmountExceedsDeposit"),
                (capture > model.settled and not honest, "InvalidSignature"),
            ],
        )
        if self.done(call):
            self.end(model, capture)

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), by_payer=st.booleans())
    def request_close(self, data: st.DataObject, by_payer: bool) -> None:
        """The payer wants its money back."""
        channel_id, model = self.pick(data)
        sender = self.payer if by_payer else self.payee
        call = Call(
            "requestClose", (channel_id,), sender, [(model.finalized, "ChannelFinalized"), (not by_payer, "NotPayer")]
        )
        if self.done(call):
            model.requested_at = model.requested_at or self.now

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), by_payer=st.booleans())
    def withdraw(self, data: st.DataObject, by_payer: bool) -> None:
        """The payer takes it, if it may."""
        channel_id, _ = self.pick(data)
        self.try_to_withdraw(channel_id, by_payer=by_payer)

    @rule(seconds=st.sampled_from([1, 60, GRACE_S - 2, GRACE_S - 1, GRACE_S]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.tick(seconds)
        self.bench.node.rpc("evm_mine")

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), early=st.booleans())
    def withdraw_at_the_edge(self, data: st.DataObject, early: bool) -> None:
        """The payer takes it in the first second in which it may, or in the one before."""
        channel_id = data.draw(st.sampled_from(self.waiting()), label="channel")
        self.tick(self.channels[channel_id].requested_at + GRACE_S - 1 - early - self.now)
        self.bench.node.rpc("evm_mine")
        self.try_to_withdraw(channel_id, by_payer=True)

    # What must be true.

    @invariant()
    def contract_says_what_the_model_says(self) -> None:
        """Records are the model's, and money is conserved: every unit is with the payer, the payee, or in the
        escrow for a live channel."""
        if not self.channels:
            return
        bench, models = self.bench, list(self.channels.values())
        holders = (bench.escrow.address, self.payer, self.payee)
        found, *balances = bench.node.calls(
            bench.escrow.request("getChannelsBatch", list(self.channels)),
            *(bench.token.request("balanceOf", holder) for holder in holders),
        )
        records = [Record(*record) for record in bench.escrow.codec.result("getChannelsBatch", found)]
        for record, model in zip(records, models, strict=True):
            assert (record.deposit, record.settled) == (model.deposit, model.settled)
            assert (record.finalized, record.close_requested_at) == (model.finalized, model.requested_at)
        held, payer, payee = (int(balance, 16) for balance in balances)
        assert held == sum(model.deposit - model.settled for model in models if not model.finalized)
        assert payee - self.at_first[self.payee] == sum(model.paid for model in models)
        assert self.at_first[self.payer] - payer == sum(model.deposit - model.refunded for model in models)

    @invariant()
    def nobody_gets_more_than_is_owed(self) -> None:
        """The payee never more than a voucher of the payer, the payer always the rest."""
        for model in self.channels.values():
            assert model.paid <= model.signed
            assert model.paid + model.refunded == (model.deposit if model.finalized else model.settled)

    # How.

    def waiting(self) -> list[bytes]:
        """Channels whose grace periods are still to end."""
        return [
            channel_id
            for channel_id, model in self.channels.items()
            if model.requested_at and not model.finalized and model.requested_at + GRACE_S - 2 > self.now
        ]

    def try_to_withdraw(self, channel_id: bytes, *, by_payer: bool) -> None:
        """Withdraw in the next second."""
        model = self.channels[channel_id]
        early = not model.requested_at or self.now + 1 < model.requested_at + GRACE_S
        call = Call(
            "withdraw",
            (channel_id,),
            self.payer if by_payer else self.payee,
            [(model.finalized, "ChannelFinalized"), (not by_payer, "NotPayer"), (early, "CloseNotReady")],
        )
        if self.done(call):
            self.end(model, model.settled)

    def pick(self, data: st.DataObject) -> tuple[bytes, Model]:
        """One of the channels."""
        channel_id = data.draw(st.sampled_from(list(self.channels)), label="channel")
        return channel_id, self.channels[channel_id]

    def voucher(self, channel_id: bytes, amount: int, *, honest: bool) -> bytes:
        """A voucher by the payer, or by a stranger."""
        if not honest:
            return self.bench.voucher(channel_id, amount, self.bench.stranger)
        model = self.channels[channel_id]
        model.signed = max(model.signed, amount)
        return self.bench.voucher(channel_id, amount)

    def tick(self, seconds: int) -> None:
        """The next block is so much later."""
        self.now += seconds
        self.bench.node.next_block_at(self.now)

    def done(self, call: Call) -> bool:
        """Send a call; whether it was done, as the model says."""
        error = call.error
        self.tick(1)
        found = None
        try:
            self.bench.escrow.send(call.name, *call.arguments, sender=call.sender)
        except Reverted as reverted:
            found = reverted.error
        assert found == error, call
        return found is None

    def end(self, model: Model, captured: int) -> None:
        """What a channel's end does."""
        model.paid += captured - model.settled
        model.refunded = model.deposit - captured
        model.settled = captured
        model.finalized = True


def test_random_lives_of_channels(bench: Bench) -> None:
    class Machine(ChannelMachine):
        pass

    Machine.bench = bench
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=35,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
