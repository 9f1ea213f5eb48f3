"""Logs: one JSON object a line for machines, plain words for people, and never a local variable."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from app import log

SECRET = "sk-fb-local-variable"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Loggers as they were: what a test configures would write to its own closed stream later."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    output, errors = capsys.readouterr()
    assert output == ""
    return [json.loads(line) for line in errors.splitlines()]


def fail(secret: str) -> None:
    raise RuntimeError(f"failed {len(secret)}")


def test_event_is_one_line_of_json_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(human=False)
    log.get("ledger").info("hold_captured", request_id="req_1", charged_nano_usd=31, text="a\nb", kind={"é"})
    (event,) = events(capsys)
    assert event.pop("at", "").endswith("Z")  # type: ignore[attr-defined]
    assert event == {
        "part": "ledger",
        "event": "hold_captured",
        "level": "info",
        "request_id": "req_1",
        "charged_nano_usd": 31,
        "text": "a\nb",
        "kind": "{'é'}",
    }


@pytest.mark.parametrize(("level", "logged"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level_is_the_least_that_is_logged(level: str, logged: int, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(human=False, level=level)
    logger = log.get("part")
    for say in (logger.debug, logger.info, logger.warning, logger.error):
        say("said")
    assert len(events(capsys)) == logged


def test_traceback_has_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    for human in (False, True):
        log.configure(human=human)
        try:
            fail(SECRET)
        except RuntimeError as error:
            log.get("part").error("broke", exc_info=error)
        _, said = capsys.readouterr()
        assert "RuntimeError: failed 20" in said
        assert "in fail" in said
        assert SECRET not in said


def test_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(human=False, level="debug")
    library = logging.getLogger("some.library")
    library.info("too chatty")
    library.warning("look at %s", "this\nline")
    try:
        fail(SECRET)
    except RuntimeError:
        library.exception("broke")
    first, second = events(capsys)
    assert (first["part"], first["event"], first["level"]) == ("some.library", "look at this\nline", "warning")
    assert str(first["at"]).endswith("Z")
    assert (second["event"], second["level"]) == ("broke", "error")
    assert "RuntimeError: failed 20" in str(second["exception"])
    assert SECRET not in str(second["exception"])


def test_people_get_words(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(human=True)
    log.get("part").info("hold_captured", request_id="req_1")
    logging.getLogger("some.library").warning("look")
    _, said = capsys.readouterr()
    assert "hold_captured" in said
    assert "req_1" in said
    assert "look" in said
    assert not said.startswith("{")


def test_stream_is_the_one_at_the_time_of_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(human=False)
    handlers = logging.getLogger().handlers
    assert [handler.stream for handler in handlers if isinstance(handler, logging.StreamHandler)] == [sys.stderr]
