"""The settings as a table of Markdown, made from the code: ``python -m app.settings_table`` prints it.

The README's table is checked against this one by a test.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.settings import Settings

HEADER = ("| setting | default | what it is |", "|---|---|---|")


def rows() -> list[str]:
    """One row for each setting: its dotted name in the file, its default as TOML, its description."""
    return [f"| `{name}` | {_default(field)} | {_cell(field.description or '')} |" for name, field in _fields(Settings)]


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        table = _table(field.annotation)
        if table is None:
            yield prefix + name, field
        else:
            yield from _fields(table, f"{prefix}{name}.")


def _table(annotation: Any) -> type[BaseModel] | None:
    """The model of a table or of an array of tables."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default()
    if default is None:
        return "unset"
    return f"`{json.dumps(list(default) if isinstance(default, tuple) else default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write("\n".join((*HEADER, *rows())) + "\n")
