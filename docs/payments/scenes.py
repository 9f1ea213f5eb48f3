"""The flow on protocol v2, from the first 402 to the close; each scene gives blocks of the page."""

from dataclasses import dataclass, field

from docs.payments.stage import WINDOW_TOKENS, Actor, Stage, chat
from docs.payments.stand_ins import StandIns
from docs.payments.transcript import Transcript
from tests.sessions import challenges_of, receipt_of

DEPOSIT = 1_000_000


class Unexpected(Exception):
    """The server did something that the page does not describe."""


def expect(condition: bool, what: object) -> None:
    """Raise `Unexpected` unless it is so."""
    if not condition:
        raise Unexpected(what)


@dataclass
class Play:
    """The page's blocks by name, and what they are made with."""

    stage: Stage
    stand_ins: StandIns = field(default_factory=StandIns)
    blocks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.show = Transcript(self.stand_ins)

    def __setitem__(self, name: str, block: object) -> None:
        if name in self.blocks:
            raise KeyError(name)
        self.blocks[name] = str(block)

    def named(self, actor: Actor, name: str) -> Actor:
        """An actor with a channel whose id has a name from here on."""
        self.stand_ins.name(actor.channel_id, name)
        return actor

    def opened(self, name: str, *, deposit: int = DEPOSIT, backend: str = "tempo-v2") -> Actor:
        """A wallet with an open channel that nothing was bought on."""
        actor = self.stage.actor(backend)
        answer = actor.open(deposit)
        expect(answer.status_code == 200, answer.text)
        return self.named(actor, name)


def main_flow(play: Play) -> Actor:
    """The unpaid request, the open, a paid stream, whole answers, a top-up."""
    actor = play.stage.actor()
    first_request(play, actor)
    opening(play, actor)
    whole_answers(play, actor)
    top_up(play, actor)
    return actor


BODY = chat("Hello", stream=True, max_tokens=300, usage=True)


def first_request(play: Play, actor: Actor) -> None:
    """The 402."""
    show, unpaid = play.show, actor.unpaid(BODY)
    play["unpaid.request"] = show.request(unpaid.request)
    play["unpaid.response"] = show.response(unpaid)
    offered = challenges_of(unpaid)
    expect(len(offered) == 3, offered)
    for name, challenge in zip(("v2", "v1", "evm"), offered, strict=True):
        play[f"unpaid.{name}"] = show.json(challenge.request)
    play["unpaid.opaque"] = show.json(offered[0].opaque)
    placeholder = actor.unpaid(BODY, authorization="Bearer wallet")
    expect(placeholder.status_code == 402 and len(challenges_of(placeholder)) == 3, placeholder.text)
    other = actor.unpaid(BODY, authorization="Bearer sk-fb-unknown")
    expect(other.status_code == 401, other.text)
    fewer = actor.unpaid(BODY, **{"accept-payment": "evm/session, tempo/session;q=0"})
    expect([challenge.method for challenge in challenges_of(fewer)] == ["evm"], fewer.headers)


def opening(play: Play, actor: Actor) -> None:
    """The open and the stream that begins in its answer."""
    show, challenge = play.show, actor.challenge(BODY)
    payload = actor.open_payload(DEPOSIT)
    play.named(actor, "channel id")
    with actor.listening(BODY, challenge, payload) as live:
        play["open.request"] = show.request(live.response.request)
        play["open.credential"] = show.credential(live.response.request)
        play["open.response"] = show.response(live.response, body=False)
        play["open.receipt"] = show.receipt(live.response)
        first = [*live.until("payment-need-voucher"), *live.until("comment")]
        play["pause.first"] = show.events(first, comments=True)
        required = int(first[0].json["requiredCumulative"])
        play["amount.first"] = required
        play["amount.prompt"] = required - 4 * WINDOW_TOKENS
        answer = actor.update(required, challenge)
        play["voucher.request"] = show.request(answer.request)
        play["voucher.credential"] = show.credential(answer.request)
        play["voucher.response"] = show.response(answer)
        play["voucher.receipt"] = show.receipt(answer)
        part = live.until("payment-need-voucher")
        play["stream.middle"] = show.events(part)
        required = int(part[-1].json["requiredCumulative"])
        play["amount.second"] = required
        actor.update(required, challenge)
        play["stream.end"] = show.events(live.rest())
        receipt = live.receipt
    play["amount.spent"] = receipt["spent"]
    play["amount.left"] = int(receipt["acceptedCumulative"]) - int(receipt["spent"])
    expect(live.response.headers["cache-control"].startswith("private"), live.response.headers)


def whole_answers(play: Play, actor: Actor) -> None:
    """A whole answer whose ceiling the channel does not cover yet, by a client that returns."""
    show, body = play.show, chat("How are you?", max_tokens=1000)
    session = {"payment-session": actor.channel_id}
    unpaid = actor.unpaid(body, **session)
    play["return.request"] = show.request(unpaid.request)
    play["return.response"] = show.response(unpaid)
    (challenge,) = challenges_of(unpaid)
    expect(challenge.intent == "session", unpaid.headers)
    play["return.decoded"] = show.json(challenge.request)
    actor.cumulative += 1
    play["return.signed"] = actor.cumulative
    short = actor.send(body, challenge, actor.voucher_payload(actor.cumulative))
    expect(short.status_code == 402, short.text)
    play["short.request"] = show.request(short.request)
    play["short.payload"] = show.payload(short.request)
    play["short.response"] = show.response(short)
    (challenge,) = challenges_of(short)
    play["short.decoded"] = show.json(challenge.request)
    actor.cumulative = int(short.json()["requiredCumulative"])
    play["whole.signed"] = actor.cumulative
    paid = actor.send(body, challenge, actor.voucher_payload(actor.cumulative))
    play["whole.request"] = show.request(paid.request)
    play["whole.payload"] = show.payload(paid.request)
    play["whole.response"] = show.response(paid)
    play["whole.receipt"] = show.receipt(paid)
    play["whole.cost"] = int(receipt_of(paid)["spent"]) - int(play.blocks["amount.spent"])


def top_up(play: Play, actor: Actor) -> None:
    """More deposit."""
    answer = actor.top_up(500_000)
    expect(answer.status_code == 200, answer.text)
    play["topup.request"] = play.show.request(answer.request)
    play["topup.payload"] = play.show.payload(answer.request)
    play["topup.response"] = play.show.response(answer)
    play["topup.receipt"] = play.show.receipt(answer)
