"""Scenes besides the main flow: several streams, a channel's state, closing in both ways, other protocols."""

import threading
from pathlib import Path
from typing import Any

from mpp.methods.tempo import attribution

from app.chain import abi
from docs.payments import example_client
from docs.payments.scenes import DEPOSIT, Play, expect
from docs.payments.stage import VOUCHER_TIMEOUT_S, Actor, LiveStream, chat
from docs.payments.transcript import Event
from tests.sessions import challenges_of, receipt_of

POLL_S = 0.05
WAIT_S = 20


def several_streams(play: Play) -> None:
    """Two streams on one channel: both wait, and vouchers serve them in the order in which they came."""
    actor = play.opened("channel id of two streams")
    bodies = [chat(text, stream=True, max_tokens=100) for text in ("One", "Two")]
    challenges = [actor.challenge(body) for body in bodies]
    voucher = actor.voucher_payload(1)
    rows = [f"| A and B begin, each with the same voucher of 1 | {_state(actor)} |"]
    with (
        actor.listening(bodies[0], challenges[0], voucher) as first,
        actor.listening(bodies[1], challenges[1], voucher) as second,
    ):
        asked, asked_too = (_asked(each.until("payment-need-voucher")) for each in (first, second))
        rows.append(f"| A asks for {asked} | |")
        rows.append(f"| B, which stands behind A, asks for what both need: {asked_too} | |")
        actor.update(asked, challenges[0])
        first.rest()
        rows.append(f"| a voucher of {asked}: A runs to its end | {_spent(first)} |")
        needed = _asked(second.until("payment-need-voucher"))
        rows.append(f"| B begins with what A left, comes to the end of it, and asks for {needed} | |")
        actor.update(needed, challenges[1])
        second.rest()
        rows.append(f"| a voucher of {needed}: B runs to its end | {_spent(second)} |")
    play["streams.rows"] = "\n".join(rows)


def state(play: Play, actor: Actor) -> None:
    """What anybody is told of a channel, and what its payer is."""
    public = actor.http.get(f"/v1/channels/{actor.channel_id}")
    play["state.request"] = play.show.request(public.request)
    play["state.public"] = play.show.response(public)
    credential = actor.credential(actor.challenge(b""), actor.voucher_payload(actor.cumulative))
    proven = actor.http.get(f"/v1/channels/{actor.channel_id}", headers={"authorization": credential})
    expect("spent" in proven.json(), proven.text)
    play["state.proven.request"] = play.show.request(proven.request)
    shown = {key: value for key, value in proven.json().items() if key not in public.json()}
    play["state.proven"] = play.show.json(shown)


def close(play: Play, actor: Actor) -> None:
    """A close, and what the chain pays."""
    payee, payer = actor.wallet.offer.recipient, actor.wallet.address
    paid, refunded = play.stage.chain_balance(payee), play.stage.chain_balance(payer)
    answer = actor.close()
    expect(answer.status_code == 200, answer.text)
    play["close.request"] = play.show.request(answer.request)
    play["close.payload"] = play.show.payload(answer.request)
    play["close.response"] = play.show.response(answer)
    play["close.receipt"] = play.show.receipt(answer)
    state = actor.http.get(f"/v1/channels/{actor.channel_id}").json()
    receipt = receipt_of(answer)
    expect((state["status"], state["settled"]) == ("closed", receipt["spent"]), state)
    returned = play.stage.chain_balance(payer) - refunded
    expect(returned == int(state["deposit"]) - int(receipt["spent"]), returned)
    # Of what it received, the payee has paid the fee of the transaction.
    expect(play.stage.chain_balance(payee) <= paid + int(receipt["spent"]), paid)
    play["close.deposit"], play["close.spent"] = state["deposit"], receipt["spent"]
    play["close.signed"], play["close.returned"] = actor.cumulative, returned
    again = actor.close()
    expect(receipt_of(again)["txHash"] == receipt["txHash"], again.text)


def forced_close(play: Play) -> None:
    """The payer asks the chain to close; the server closes at once, for what was spent."""
    actor = play.opened("channel id of the forced close")
    actor.finished(chat("Hello", stream=True, max_tokens=100), actor.voucher_payload(1))
    if actor.opening is None:
        raise RuntimeError("not open")
    raw = actor.wallet.request_close(actor.opening)
    play.stage.tempo.rpc("eth_sendRawTransaction", "0x" + raw.hex())
    found = _state_with(actor, "closed")
    play["forced.state"] = play.show.json(found)
    refused = actor.send(b"", actor.challenge(b""), actor.voucher_payload(actor.cumulative + 1))
    expect(refused.status_code == 410, refused.text)


def version_1(play: Play) -> None:
    """An open on v1, and a stream that ends because the deposit does."""
    actor = play.stage.actor("tempo-v1")
    payload = actor.open_payload(1_200)
    play.named(actor, "v1 channel id")
    live = actor.finished(chat("Tell me of the sea", stream=True, max_tokens=4000), payload)
    play["v1.payload"] = play.show.payload(live.response.request)
    asks = [event for event in live.seen if event.name == "payment-need-voucher"]
    expect(int(asks[-1].json["requiredCumulative"]) <= 1_200, asks)
    play["v1.stream"] = play.show.events(live.seen)


def once(play: Play) -> None:
    """A whole answer paid by one transfer, and no channel."""
    actor, body = play.stage.actor(), chat("Hello", max_tokens=50)
    unpaid = actor.unpaid(body, **{"accept-payment": "tempo/charge"})
    (challenge,) = challenges_of(unpaid)
    play["once.request"] = play.show.request(unpaid.request)
    play["once.response"] = play.show.response(unpaid, body=False)
    play["once.decoded"] = play.show.json(challenge.request)
    memo = attribution.encode(challenge.id, challenge.realm, "client")
    terms = challenge.request
    call = abi.TRANSFER_WITH_MEMO.call(terms["recipient"], int(terms["amount"]), bytes.fromhex(memo[2:]))
    signed = actor.wallet.wire(actor.wallet.transaction(((terms["currency"], call),)))
    paid = actor.send(body, challenge, {"type": "transaction", "signature": signed})
    expect(paid.status_code == 200, paid.text)
    play["once.credential"] = play.show.credential(paid.request)
    play["once.paid"] = play.show.response(paid, body=False)
    play["once.receipt"] = play.show.receipt(paid)
    again = actor.send(body, challenge, {"type": "transaction", "signature": signed})
    expect((again.status_code, again.content) == (200, paid.content), again.text)


def evm(play: Play) -> None:
    """Opens on a plain EVM chain: the client's own transaction, and an authorization that we carry."""
    for name, sign in (("hash", Actor.open_on_evm), ("authorization", Actor.authorized_on_evm)):
        actor = play.stage.actor("evm")
        payload = sign(actor, DEPOSIT)
        play.named(actor, f"evm channel id by {name}")
        answer = actor.send(b"", actor.challenge(b""), payload)
        expect(answer.status_code == 200, answer.text)
        credential = play.show.credential if name == "hash" else play.show.payload
        play[f"evm.{name}"] = credential(answer.request)
        if name == "hash":
            play["evm.receipt"] = play.show.receipt(answer)


def silence(play: Play) -> "Waiting":
    """A stream whose payer never answers: begun now, and looked at when its time is up."""
    actor = play.opened("channel id of the silence")
    return Waiting(play, actor)


class Waiting:
    """A stream that waits for a voucher which never comes, while the play goes on."""

    def __init__(self, play: Play, actor: Actor) -> None:
        self._play = play
        self._body = chat("Hello", stream=True, max_tokens=300)
        self._actor, self._challenge = actor, actor.challenge(self._body)
        self._found: LiveStream | None = None
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with self._actor.listening(self._body, self._challenge, self._actor.voucher_payload(1)) as live:
            live.rest()
            self._found = live

    def end(self) -> None:
        """Wait until the server gave up."""
        self._thread.join(WAIT_S + VOUCHER_TIMEOUT_S)
        if self._found is None:
            raise RuntimeError("the stream did not end")
        self._play["silence.events"] = self._play.show.events(self._found.seen)


def troubles(play: Play) -> None:
    """Failures that an open must survive."""
    actor = play.stage.actor()
    failing = chat("Hello [[sandbox fail=status:503]]", stream=True)
    payload = actor.open_payload(DEPOSIT)
    play.named(actor, "channel id of the failure")
    live = actor.finished(failing, payload)
    play["trouble.stream"] = play.show.events([event for event in live.seen if event.name != "payment-need-voucher"])
    whole = play.stage.actor()
    payload = whole.open_payload(DEPOSIT)
    play.named(whole, "channel id of the whole answer")
    answer = whole.send(chat("Hello", max_tokens=100), whole.challenge(chat("Hello", max_tokens=100)), payload)
    expect(answer.status_code == 402 and "channelId" in answer.json(), answer.text)
    play["trouble.whole"] = play.show.response(answer)


def idempotency(play: Play) -> None:
    """The same request twice."""
    actor, body, key = play.opened("channel id of the repeated request"), chat("Hello", max_tokens=50), "order-2117"
    first = actor.pay(body, 2_000, **{"idempotency-key": key})
    expect(first.status_code == 200, first.text)
    second = actor.http.send(first.request)
    third = actor.pay(body, 2_001, **{"idempotency-key": key})
    for each in (second, third):
        expect((each.status_code, each.content) == (200, first.content), each.text)
    play["again.request"] = play.show.request(second.request)
    play["again.response"] = play.show.response(second, body=False)
    play["again.receipt"] = play.show.receipt(second)
    expect(str(actor.spent()) == receipt_of(first)["spent"], actor.spent())
    other = actor.pay(chat("Bye", max_tokens=50), 2_002, **{"idempotency-key": key})
    expect(other.status_code == 409, other.text)


def example(play: Play) -> None:
    """The client of the page, as it is printed there."""
    actor = play.stage.actor()
    answers, receipt = example_client.talk(play.stage.server.url, actor.wallet.key)
    expect(len(answers) == 2 and all(answers) and receipt["txHash"], (answers, receipt))
    source = Path(example_client.__file__).read_text()
    play["client.source"] = f"```python\n{source.rstrip()}\n```"
    play["client.spent"] = receipt["spent"]


def discovery(play: Play, actor: Actor) -> None:
    """What says all this to machines."""
    document = actor.http.get("/openapi.json").json()
    play["discovery.offers"] = play.show.json(document["paths"]["/v1/chat/completions"]["post"]["x-payment-info"])
    play["discovery.text"] = "```text\n" + actor.http.get("/llms.txt").text.partition("## Models")[0].rstrip() + "\n```"


def _state(actor: Actor) -> str:
    receipt = receipt_of(actor.update(actor.cumulative))
    return f"accepted {receipt['acceptedCumulative']}, spent {receipt['spent']}"


def _spent(live: LiveStream) -> str:
    receipt = live.receipt
    return f"accepted {receipt['acceptedCumulative']}, spent {receipt['spent']}"


def _asked(events: list[Event]) -> int:
    return int(events[-1].json["requiredCumulative"])


def _state_with(actor: Actor, status: str) -> dict[str, Any]:
    pause = threading.Event()
    for _ in range(int(WAIT_S / POLL_S)):
        found: dict[str, Any] = actor.http.get(f"/v1/channels/{actor.channel_id}").json()
        if found["status"] == status:
            return found
        pause.wait(POLL_S)
    raise RuntimeError(f"the channel is not {status}: {found}")
