"""Every refusal of the errors table, provoked for real: status, problem type and what it says."""

from collections.abc import Iterator

import httpx
from mpp import Challenge

from app.clock import EpochMs, SystemClock
from docs.payments.scenes import DEPOSIT, Play, expect
from docs.payments.stage import Actor, chat, own_challenges
from tests.chain.wallet import new_key

BODY = chat("Hello", max_tokens=50)
PROBLEMS = "https://paymentauth.org/problems/"
VOUCHERS_MAX = 400
# An x coordinate that no point of the curve has: no key can have made such a signature.
NOBODYS = "0x" + "05".rjust(64, "0") + "01".rjust(64, "0") + "1b"


def errors(play: Play) -> None:
    """One row for each."""
    actor = play.opened("channel id of the errors")
    shown: list[httpx.Response] = []
    for name, response in _all(actor):
        expect(response.status_code >= 400, (name, response.text))
        play[f"error.{name}"] = _row(play, response)
        shown.append(response)
    stranger = play.stage.actor()
    payload = stranger.open_payload(DEPOSIT)
    unknown = stranger.send(BODY, stranger.challenge(BODY), stranger.voucher_payload(1))
    play["error.unknown_channel"] = _row(play, unknown)
    expect(unknown.status_code == 410 and payload["channelId"] == unknown.json()["channelId"], unknown.text)
    expect(actor.spent() == 0, "an error was charged")
    expect(not any("payment-receipt" in response.headers for response in shown), "an error has a receipt")
    used = _used(actor)
    play["error.used"] = _row(play, used)
    play["error.example"] = play.show.response(used, challenges=1)


def closed(play: Play, actor: Actor) -> None:
    """What a channel that is closed answers."""
    play["error.closed"] = _row(play, actor.send(BODY, actor.challenge(BODY), actor.voucher_payload(actor.cumulative)))


def fast(play: Play) -> None:
    """Vouchers of one channel until they are too many."""
    actor = play.opened("channel id of many vouchers")
    challenge, payload = actor.challenge(b""), actor.voucher_payload(1)
    for _ in range(VOUCHERS_MAX):
        answer = actor.send(b"", challenge, payload)
        if answer.status_code != 200:
            break
    expect(answer.status_code == 429, answer.text)
    play["error.fast"] = _row(play, answer)
    play["fast.response"] = play.show.response(answer)


def _all(actor: Actor) -> Iterator[tuple[str, httpx.Response]]:
    yield from _malformed(actor)
    yield from _challenges(actor)
    yield from _vouchers(actor)
    yield from _fundings(actor)


def _malformed(actor: Actor) -> Iterator[tuple[str, httpx.Response]]:
    yield "malformed", actor.unpaid(BODY, authorization="Payment 7b7d")
    yield "two", actor.unpaid(BODY, authorization="Payment e30, Payment e30")
    credential = actor.credential(actor.challenge(BODY), actor.voucher_payload(1))
    yield "and_key", actor.unpaid(BODY, authorization=credential, **{"x-api-key": "sk-fb-one"})
    yield "key", actor.unpaid(BODY, authorization="Bearer sk-fb-unknown")


def _challenges(actor: Actor) -> Iterator[tuple[str, httpx.Response]]:
    challenge, voucher = actor.challenge(BODY), actor.voucher_payload(1)
    yield "other_body", actor.send(chat("Bye", max_tokens=50), challenge, voucher)
    yield "no_body", actor.send(BODY, actor.challenge(b""), voucher)
    yield "expired", actor.send(BODY, _expired(challenge), voucher)
    changed = Challenge.from_www_authenticate(challenge.to_www_authenticate(challenge.realm).replace('id="', 'id="x'))
    yield "changed", actor.send(BODY, changed, voucher)
    v1 = next(
        each for each in _offered(actor.unpaid(BODY)) if each.request["methodDetails"].get("sessionProtocol") == "v1"
    )
    yield "other_protocol", actor.send(BODY, v1, voucher)


def _vouchers(actor: Actor) -> Iterator[tuple[str, httpx.Response]]:
    challenge = actor.challenge(b"")
    yield "signature", actor.send(b"", challenge, {**actor.voucher_payload(2), "signature": NOBODYS})
    yield "signer", actor.send(b"", challenge, actor.voucher_payload(2, key=new_key()))
    stranger = {**actor.voucher_payload(2)}
    stranger["descriptor"] = {**stranger["descriptor"], "payee": actor.wallet.address}
    yield "descriptor", actor.send(b"", challenge, stranger)
    yield "deposit", actor.send(b"", challenge, actor.voucher_payload(DEPOSIT + 1))
    actor.update(10)
    yield "below", actor.send(b"", challenge, actor.voucher_payload(9))
    yield "short", actor.pay(BODY, 11)
    actor.update(DEPOSIT)
    huge = chat("Hello", max_tokens=500_000)
    yield "too_dear", actor.pay(huge, DEPOSIT)


def _fundings(actor: Actor) -> Iterator[tuple[str, httpx.Response]]:
    other = Actor(actor.server, actor.wallet, actor.http)
    payload = other.open_payload(DEPOSIT, payee="0x" + "5e" * 20)
    yield "payee", other.send(b"", other.challenge(b""), payload)
    expired = other.open_payload(DEPOSIT, valid_before=1)
    yield "stale", other.send(b"", other.challenge(b""), expired)
    if actor.opening is None:
        raise RuntimeError("not open")
    topped = {**actor.wallet.top_up_v2(actor.opening, 5), "additionalDeposit": "6"}
    yield "top_up", actor.send(b"", actor.challenge(b""), topped)


def _used(actor: Actor) -> httpx.Response:
    """The second purchase with one challenge."""
    challenge, payload = actor.challenge(BODY), actor.voucher_payload(DEPOSIT)
    first = actor.send(BODY, challenge, payload)
    expect(first.status_code == 200, first.text)
    return actor.send(BODY, challenge, payload)


def _expired(challenge: Challenge) -> Challenge:
    issued = own_challenges().issue(
        method=challenge.method,
        intent=challenge.intent,
        request=challenge.request,
        expires_at=EpochMs(SystemClock().now_ms() - 1_000),
        digest=challenge.digest,
        opaque=challenge.opaque,
    )
    return Challenge.from_www_authenticate(issued.header)


def _offered(response: httpx.Response) -> list[Challenge]:
    return [Challenge.from_www_authenticate(value) for value in response.headers.get_list("www-authenticate")]


def _row(play: Play, response: httpx.Response) -> str:
    """Status, problem type or code, and the message: three cells."""
    body = response.json()
    kind = f"`{body['type'].removeprefix(PROBLEMS)}`" if "type" in body else f"code `{body['error']['code']}`"
    return play.stand_ins.text(f"{response.status_code} | {kind} | {body['error']['message']}")
