"""Text that operators give to things: labels, names, notes and ids of their own. Pure.

Both databases must be able to keep it (PostgreSQL takes no NUL) and no terminal may be led astray
by it, so only printable characters are taken.
"""

import re

from app.errors import InvalidRequest

LABEL_CHARACTERS_MAX = 200
_CALLER_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def checked_label(text: str, *, param: str) -> str:
    """``text`` without surrounding space. Raises `InvalidRequest` naming ``param``."""
    label = text.strip()
    if not 0 < len(label) <= LABEL_CHARACTERS_MAX or not label.isprintable():
        raise InvalidRequest(f"{param} must be 1 to {LABEL_CHARACTERS_MAX} printable characters", param=param)
    return label


def checked_caller_id(text: str, *, param: str) -> str:
    """An id that a caller chose, so that doing a thing twice does it once. Raises `InvalidRequest`."""
    if not _CALLER_ID.fullmatch(text):
        raise InvalidRequest(f"{param} must be 1 to 128 letters, digits, '.', '_' or '-'", param=param)
    return text


def may_be_id(text: str) -> bool:
    """Whether a row could have this id at all; what is no such text need not reach the database."""
    return 0 < len(text) <= LABEL_CHARACTERS_MAX and text.isascii() and text.isprintable()
