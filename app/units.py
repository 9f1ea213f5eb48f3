"""The billable units: kinds of tokens, and what is counted in other ways. Names alone; pure."""

from collections.abc import Mapping

PARENT: Mapping[str, str] = {
    "cached_input": "input",
    "cache_write": "input",
    "audio_input": "input",
    "reasoning": "output",
    "audio_output": "output",
}
ROOTS = ("input", "output")
# Kinds of tokens.
UNITS = (*ROOTS, *PARENT)
# What is no token. An image's unit names its size: "image:1024x1024".
IMAGE_UNIT = "image:"
SECOND = "second"
CHARACTER = "character"
SEARCH_UNIT = "search_unit"
WEB_SEARCH = "web_search"
FLAT_UNITS = (SECOND, CHARACTER, SEARCH_UNIT, WEB_SEARCH)
