"""Payment events come out of a stream, and every other byte stays, wherever the stream is split."""

import json
from itertools import pairwise

import pytest
from farebox_client import ServerMisbehaved
from farebox_client.sse import EVENT_BYTES_MAX, EventFilter, PaymentEvent
from hypothesis import given
from hypothesis import strategies as st

NEED = {"channelId": "0x" + "11" * 32, "requiredCumulative": "2", "acceptedCumulative": "1", "deposit": "9"}


def filtered(pieces: list[bytes]) -> tuple[bytes, list[PaymentEvent]]:
    """What is left of a stream, and what was taken out."""
    events, left, taken = EventFilter(), b"", []
    for piece in pieces:
        for item in events.feed(piece):
            if isinstance(item, PaymentEvent):
                taken.append(item)
            else:
                left += item
    return left + events.finish(), taken


# Text of an event's data: anything but line ends.
texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
ends = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes, list[str]]:
    """A stream, what a user is to see of it, and the names of what is taken out."""
    whole, seen, names = b"", b"", []
    for _ in range(draw(st.integers(0, 6))):
        end = draw(ends)
        if draw(st.booleans()):
            name = draw(st.sampled_from(["payment-need-voucher", "payment-receipt"]))
            space = draw(st.sampled_from(["", " "]))
            whole += f"event:{space}{name}{end}data:{space}{json.dumps(NEED)}{end}{end}".encode()
            names.append(name)
        else:
            kind = draw(st.sampled_from(["", ": comment", "event: message", "event: payment-other", "id: 7"]))
            lines = ([kind] if kind else []) + [f"data: {draw(texts)}" for _ in range(draw(st.integers(1, 3)))]
            event = "".join(line + end for line in [*lines, ""]).encode()
            whole += event
            seen += event
    return whole, seen, names


@given(streams(), st.lists(st.integers(0, 400)))
def test_split_anywhere_the_same_comes_out(stream: tuple[bytes, bytes, list[str]], cuts: list[int]) -> None:
    whole, seen, names = stream
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    left, taken = filtered([whole[start:end] for start, end in pairwise(places)])
    assert left == seen
    assert [event.name for event in taken] == names
    assert all(event.data == NEED for event in taken)


@given(streams())
def test_byte_by_byte_the_same_comes_out(stream: tuple[bytes, bytes, list[str]]) -> None:
    whole, seen, names = stream
    left, taken = filtered([bytes((byte,)) for byte in whole])
    assert (left, [event.name for event in taken]) == (seen, names)


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_of_no_payment_come_out_as_they_went_in(pieces: list[bytes]) -> None:
    left, taken = filtered(pieces)
    assert (left, taken) == (b"".join(pieces), [])


def test_event_is_there_as_soon_as_its_blank_line() -> None:
    events = EventFilter()
    assert list(events.feed(b"data: 1\n")) == []
    assert list(events.feed(b"\n")) == [b"data: 1\n\n"]


def test_data_over_several_lines_is_one_object() -> None:
    text = b'event: payment-receipt\ndata: {"a":\ndata: 1}\n\n'
    _, (event,) = filtered([text])
    assert event.data == {"a": 1}


def test_last_name_of_an_event_counts() -> None:
    text = b"event: payment-receipt\nevent: message\ndata: {}\n\n"
    assert filtered([text]) == (text, [])
    _, (event,) = filtered([b"event: message\nevent: payment-receipt\ndata: {}\n\n"])
    assert event.name == "payment-receipt"


def test_name_in_the_data_is_no_event() -> None:
    text = b'data: {"text": "event: payment-receipt"}\n\n'
    assert filtered([text]) == (text, [])


def test_payment_event_that_was_cut_off_is_not_shown() -> None:
    assert filtered([b'data: 1\n\nevent: payment-receipt\ndata: {"spe']) == (b"data: 1\n\n", [])


@pytest.mark.parametrize("data", [b"{", b"[]", b"1", b"\xff"])
def test_payment_event_without_sense_is_refused(data: bytes) -> None:
    with pytest.raises(ServerMisbehaved, match="payment-receipt event that is not"):
        filtered([b"event: payment-receipt\ndata: " + data + b"\n\n"])


def test_event_without_end_is_refused() -> None:
    with pytest.raises(ServerMisbehaved, match="an event of more than"):
        filtered([b"data: " + b"x" * EVENT_BYTES_MAX])
