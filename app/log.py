"""Structured logs: one event per state change, JSON lines unless a person is watching.

Prompts, keys, credentials and signatures are never fields. Tracebacks carry no local variables.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, cast

import orjson
import structlog


def configure(*, human: bool, level: str = "info") -> None:
    """Send structlog and the standard library's warnings to standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any
    if human:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        renderer = structlog.processors.JSONRenderer(
            serializer=lambda event, **_: orjson.dumps(event, default=str).decode()
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            *([] if human else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, force=True)
    if not human:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())


class _JsonLines(logging.Formatter):
    """What libraries log, in the same form as our own events."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, tz=UTC).isoformat().replace("+00:00", "Z")
        event = {
            "part": record.name,
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "at": at,
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose events carry ``part=name``."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(part=name))
