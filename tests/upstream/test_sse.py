import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.sse import BOM, EventSplitter, EventTooLarge, comment, frame

BOUND = 1 << 20
LINE_ENDS = (b"\n", b"\r", b"\r\n")
PIECES = st.sampled_from(
    [
        *LINE_ENDS,
        *LINE_ENDS,
        b'data: {"a":1}',
        b"data:{}",
        b"data:  two spaces",
        b"data",
        b"data:",
        b": comment",
        b":",
        b"event: payment-receipt",
        b"id: 1",
        b"retry: 5",
        b"dataset: no",
        "data: über 東京 😀".encode(),
        BOM,
        b"\xff\xfe",
    ]
)
CONTENTS = st.tuples(st.sampled_from([b"", BOM]), st.lists(PIECES, max_size=40)).map(lambda it: it[0] + b"".join(it[1]))


def reference(content: bytes) -> list[bytes]:
    """The events as the HTML standard reads them, from the whole content at once."""
    *lines, _unfinished = re.split(rb"\r\n|\r|\n", content.removeprefix(BOM))
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if not line:
            if data:
                events.append(b" ".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def split(content: bytes, *positions: int) -> list[bytes]:
    """The events of a content that arrives in parts."""
    splitter = EventSplitter(event_bytes_max=BOUND)
    ends = [0, *sorted(position % (len(content) + 1) for position in positions), len(content)]
    blocks = [content[start:end] for start, end in pairwise(ends)]
    return [event for block in blocks for event in splitter.feed(block)]


@given(content=CONTENTS, positions=st.lists(st.integers(0, 4000), max_size=12))
def test_any_split_gives_the_events_of_the_standard(content: bytes, positions: list[int]) -> None:
    assert split(content, *positions) == reference(content)


@given(content=CONTENTS)
def test_one_byte_at_a_time_gives_the_events_of_the_standard(content: bytes) -> None:
    assert split(content, *range(len(content))) == reference(content)


@pytest.mark.parametrize("end", LINE_ENDS)
def test_every_line_ending_ends_lines_and_events(end: bytes) -> None:
    assert split(end.join([b"data: 1", b"", b"data:2", b"", b""])) == [b"1", b"2"]


def test_line_feed_after_a_split_carriage_return_is_part_of_it_once() -> None:
    content = b"data: 1\r\n\ndata: 2\n\n"
    assert split(content, 8, 9) == [b"1", b"2"]


def test_byte_order_mark_may_be_split_and_stands_only_at_the_start() -> None:
    content = BOM + b"data: 1\n\n" + BOM + b"data: 2\n\ndata: 3\n\n"
    assert split(content, 1, 2) == [b"1", b"3"]


def test_lines_of_one_event_become_one_line() -> None:
    assert split(b'data: {"a":\ndata: 1}\n\n') == [b'{"a": 1}']


def test_names_comments_and_unknown_fields_are_dropped() -> None:
    assert split(b": hello\nevent: payment-receipt\nid: 7\nretry: 1\ndata: x\n\nevent: empty\n\n") == [b"x"]


def test_event_cut_off_by_the_end_is_never_given() -> None:
    assert split(b"data: 1\n\ndata: 2\n") == [b"1"]


@pytest.mark.parametrize("step", [1, 7, 100])
def test_event_without_an_end_is_bounded(step: int) -> None:
    splitter = EventSplitter(event_bytes_max=100)
    for _ in range(100 // step):
        assert splitter.feed(b"x" * step) == []
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x" * step)


def test_event_within_the_bound_is_given() -> None:
    splitter = EventSplitter(event_bytes_max=100)
    data = b"x" * 94
    assert splitter.feed(b"data: " + data) == []
    assert splitter.feed(b"\n\n") == [data]


@given(st.lists(st.binary(min_size=1).filter(lambda data: not set(data) & set(b"\r\n")), max_size=5))
def test_what_is_framed_is_read_back(events: list[bytes]) -> None:
    content = b"".join(comment(b"still here") + frame(data) for data in events)
    assert split(content, 3) == events
