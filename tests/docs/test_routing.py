"""The page about routing: its links lead somewhere, and what it shows is taken."""

import re
from pathlib import Path

import orjson

from app.routing.defaults import PARAMETERS, wishes_of
from bench.routing_simulator import POLICIES

PAGE = Path(__file__).parent.parent.parent / "docs/routing.md"
TEXT = PAGE.read_text()


def test_page_links_to_its_own_headings_and_to_files_that_there_are() -> None:
    headings = {line.lstrip("# ").lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("#")}
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 10
    for link in links:
        assert link.removeprefix("#") in headings if link.startswith("#") else (PAGE.parent / link).is_file(), link


def test_routing_of_keys_is_taken_as_shown() -> None:
    (body,) = re.findall(r"PATCH /admin/api/keys/key_01\.\.\.\n(.*?)```", TEXT, flags=re.DOTALL)
    assert wishes_of(orjson.loads(body)["routing"]).only == ("our-rack", "our-cloud")
    options = re.findall(r"--routing ([\w.]+)=", TEXT)
    assert options
    assert set(options) <= set(PARAMETERS)


def test_every_policy_of_the_simulator_has_its_line() -> None:
    for policy in POLICIES:
        assert re.search(rf"^    {policy} +\d+\.\d+%", TEXT, flags=re.MULTILINE), policy
