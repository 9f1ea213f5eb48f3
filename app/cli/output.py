"""What commands print: one JSON object, or small aligned text for a person."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

NOTHING = "-"


def emit(body: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Print ``body`` as one JSON object, or ``text``."""
    typer.echo(json.dumps(body, indent=2) if as_json else text)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str) -> str:
    """Rows aligned under headings; ``columns`` maps members to headings. ``empty`` is said of none."""
    if not rows:
        return empty
    lines = [list(columns.values())] + [[cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def record(body: Mapping[str, Any]) -> str:
    """One thing, a member a line."""
    width = max(map(len, body))
    return "\n".join(f"{name.replace('_', ' ').ljust(width)}  {cell(value)}" for name, value in body.items())


def cell(value: Any) -> str:
    """A value for a person."""
    if value is None or value in ([], {}, ""):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)
