"""What the sandbox paints: real PNGs of the asked size, bands of colour that the prompt chooses.

Sixteen flat colours compress to a few hundred bytes at any size. The format is the PNG specification's
(third edition, W3C), with a palette and four bits for each pixel. Pure.
"""

import re
import struct
import zlib
from base64 import b64encode
from hashlib import blake2b
from typing import Any

from app.upstream.provider import Call
from app.upstream.sandbox_request import Asked, count
from app.upstream.sandbox_script import refused
from app.upstream.sandbox_text import quoted

IMAGES_MAX = 10
IMAGES_SCRIPTED_MAX = 128
SIDE_PIXELS_MAX = 4096
DEFAULT_SIZE = "1024x1024"
BANDS = 16
_SIZE = re.compile(r"([1-9][0-9]{0,3})[x*]([1-9][0-9]{0,3})")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BITS_PER_PIXEL = 4
_PALETTE = 3
_FILTER_NONE = b"\x00"
_FILTER_UP = b"\x02"


def images(call: Call, asked: Asked, *, created_s: int) -> dict[str, Any]:
    """OpenAI's list of images. Raises `UpstreamError`."""
    body = call.body
    number = count(body, "n", default=1, most=IMAGES_MAX)
    if asked.script.lie is not None:
        number = min(asked.script.lie, IMAGES_SCRIPTED_MAX)
    layout = body.get("response_format") or "b64_json"
    if layout not in ("b64_json", "url"):
        raise refused("'response_format' must be b64_json or url")
    if body.get("output_format") not in (None, "png"):
        raise refused("'output_format': the sandbox paints png")
    width, height = _size(body.get("size") or DEFAULT_SIZE)
    data = []
    for index in range(number):
        encoded = b64encode(png(width, height, seed=f"{asked.digest}\n{index}")).decode()
        entry = {"b64_json": encoded} if layout == "b64_json" else {"url": f"data:image/png;base64,{encoded}"}
        data.append({**entry, "revised_prompt": f"{quoted(asked.text).strip()}, as bands of colour"})
    return {"created": created_s, "data": data}


def png(width: int, height: int, *, seed: str) -> bytes:
    """Horizontal bands that go from one colour to another."""
    first, last = (blake2b(seed.encode(), digest_size=6).digest()[start : start + 3] for start in (0, 3))
    palette = b"".join(_between(first, last, band) for band in range(BANDS))
    header = struct.pack(">IIBBBBB", width, height, _BITS_PER_PIXEL, _PALETTE, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette),
            _chunk(b"IDAT", _pixels(width, height)),
            _chunk(b"IEND", b""),
        )
    )


def _pixels(width: int, height: int) -> bytes:
    row_bytes = -(-width * _BITS_PER_PIXEL // 8)
    # A row that is like the one above it is all zeros under the filter "up".
    same = _FILTER_UP + bytes(row_bytes)
    packer = zlib.compressobj(level=6)
    parts, before = [], -1
    for row in range(height):
        band = row * BANDS // height
        parts.append(packer.compress(same if band == before else _FILTER_NONE + bytes([band * 0x11]) * row_bytes))
        before = band
    return b"".join((*parts, packer.flush()))


def _between(first: bytes, last: bytes, band: int) -> bytes:
    return bytes(
        (one * (BANDS - 1 - band) + other * band) // (BANDS - 1) for one, other in zip(first, last, strict=True)
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _size(text: Any) -> tuple[int, int]:
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None or max(int(found[1]), int(found[2])) > SIDE_PIXELS_MAX:
        raise refused(f"'size' must be WIDTHxHEIGHT, each at most {SIDE_PIXELS_MAX}")
    return int(found[1]), int(found[2])
