"""Writes `docs/payments.md`: plays the whole flow against a real server and fills in `docs/payments/template.md`.

    python -m docs.make_payments            # writes the page
    python -m docs.make_payments --check    # plays it again, and exits with 1 where the page says something else

What differs from run to run has a stand-in, so the page is the same text every time; everything else is what
went over the wire.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path

from docs.payments import endings, errors, scenes, vectors
from docs.payments.stage import stage

PAGE = Path(__file__).parent / "payments.md"
TEMPLATE = Path(__file__).parent / "payments" / "template.md"
_PLACE = re.compile(r"\{\{([\w.]+)\}\}")


def blocks() -> dict[str, str]:
    """Play everything; the blocks by their names in the template."""
    with stage() as found:
        play = scenes.Play(found)
        waiting = endings.silence(play)
        actor = scenes.main_flow(play)
        endings.several_streams(play)
        endings.state(play, actor)
        endings.version_1(play)
        endings.once(play)
        endings.evm(play)
        endings.troubles(play)
        endings.idempotency(play)
        endings.forced_close(play)
        endings.example(play)
        errors.errors(play)
        errors.fast(play)
        vectors.vectors(play)
        endings.discovery(play, actor)
        endings.close(play, actor)
        errors.closed(play, actor)
        waiting.end()
    return play.blocks


def page(found: dict[str, str]) -> str:
    """The template with its blocks. Raises `KeyError` for one that is missing, `ValueError` for one too many."""
    template = TEMPLATE.read_text()
    unused = set(found) - set(_PLACE.findall(template))
    if unused:
        raise ValueError(f"the template has no place for {', '.join(sorted(unused))}")
    return _PLACE.sub(lambda place: found[place[1]], template)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="docs.make_payments", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    made = page(blocks())
    if not check:
        PAGE.write_text(made)
        return 0
    there = PAGE.read_text() if PAGE.exists() else ""
    difference = list(difflib.unified_diff(there.splitlines(), made.splitlines(), "docs/payments.md", "as played"))
    sys.stderr.writelines(f"{line}\n" for line in difference)
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
