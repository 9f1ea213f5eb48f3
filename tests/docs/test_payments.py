"""The page for authors of clients says what a real server does today."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/payments.md"


def test_page_is_what_the_server_does() -> None:
    command = [sys.executable, "-m", "docs.make_payments", "--check"]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert played.returncode == 0, f"run python -m docs.make_payments\n{played.stderr[-6000:]}"


def test_page_links_to_its_own_headings() -> None:
    text = PAGE.read_text()
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in _headings(text)}
    linked = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert linked
    assert linked <= headings


def test_page_shows_nothing_that_was_not_filled_in() -> None:
    assert "{{" not in PAGE.read_text()


def _headings(text: str) -> list[str]:
    return [line for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() if line.startswith("#")]
