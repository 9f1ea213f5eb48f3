"""Images that any decoder opens, of the size that was asked for."""

import base64
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import ImagesResponse

from app.endpoints import IMAGES
from app.upstream.sandbox_image import IMAGES_MAX, IMAGES_SCRIPTED_MAX, png
from tests.upstream.sandboxes import asked, refusal_of, sandbox


def decoded(content: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of colour numbers of a PNG with 4 bits a pixel, its checksums checked."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(content):
        size, name = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size]) == (zlib.crc32(name + body),)
        chunks[name] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, bits, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, *rest) == (4, 3, 0, 0, 0)
    assert len(chunks[b"PLTE"]) == 16 * 3
    pixels, row_bytes = zlib.decompress(chunks[b"IDAT"]), (width + 1) // 2
    assert len(pixels) == height * (1 + row_bytes)
    rows: list[bytes] = []
    for start in range(0, len(pixels), 1 + row_bytes):
        kind, row = pixels[start], pixels[start + 1 : start + 1 + row_bytes]
        above = rows[-1] if kind == 2 else bytes(row_bytes)
        rows.append(bytes((here + over) % 256 for here, over in zip(row, above, strict=True)))
    return width, height, rows


async def painted(prompt: str = "A sunset over the ocean", **body: Any) -> dict[str, Any]:
    return await sandbox().complete(asked(IMAGES, prompt=prompt, **body))


@given(st.integers(1, 70), st.integers(1, 70))
def test_png_of_any_size_decodes_to_bands(width: int, height: int) -> None:
    found_width, found_height, rows = decoded(png(width, height, seed="s"))
    assert (found_width, found_height) == (width, height)
    bands = [row[0] & 15 for row in rows]
    assert bands == [row * 16 // height for row in range(height)]
    assert all(set(row) == {row[0]} and row[0] >> 4 == row[0] & 15 for row in rows)


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        (None, (1024, 1024)),
        ("1024x1024", (1024, 1024)),
        ("1792*1024", (1792, 1024)),
        ("1024x1792", (1024, 1792)),
    ],
)
async def test_image_has_the_size_that_was_asked_for_and_is_small(size: str | None, pixels: tuple[int, int]) -> None:
    body = await painted(size=size)
    ImagesResponse.model_validate(body)
    (image,) = body["data"]
    assert struct.unpack(">II", base64.b64decode(image["b64_json"])[16:24]) == pixels
    assert len(image["b64_json"]) < 8000
    assert image["revised_prompt"] == "A sunset over the ocean, as bands of colour"


async def test_images_differ_from_each_other_and_not_from_themselves() -> None:
    body = await painted(n=3)
    assert len({image["b64_json"] for image in body["data"]}) == 3
    assert body["data"] == (await painted(n=3))["data"]
    assert body["data"] != (await painted("Another", n=3))["data"]


async def test_url_holds_the_image_itself() -> None:
    (image,) = (await painted(response_format="url"))["data"]
    assert set(image) == {"url", "revised_prompt"}
    kind, _, encoded = image["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert decoded(base64.b64decode(encoded))[:2] == (1024, 1024)


@pytest.mark.parametrize(("lie", "made"), [(0, 0), (3, 3), (1000, IMAGES_SCRIPTED_MAX)])
async def test_more_or_fewer_images_are_scriptable(lie: int, made: int) -> None:
    assert len((await painted(f"[[sandbox lie={lie}]]a", n=2, size="8x8"))["data"]) == made


@pytest.mark.parametrize(
    "body",
    [
        {"n": 0},
        {"n": IMAGES_MAX + 1},
        {"n": True},
        {"size": "large"},
        {"size": "0x8"},
        {"size": "5000x8"},
        {"size": 8},
        {"response_format": "png"},
        {"output_format": "webp"},
        {"prompt": 5},
    ],
)
async def test_what_cannot_be_painted_is_the_callers_fault(body: dict[str, Any]) -> None:
    assert (await refusal_of(asked(IMAGES, **({"prompt": "a"} | body)))).status == 400
