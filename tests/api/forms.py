"""Multipart forms, written byte by byte so that tests can write wrong ones."""

BOUNDARY = "farebox-test-boundary"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

Part = tuple[str, bytes]


def part(name: str, value: str | bytes = b"", *, filename: str | None = None, kind: str | None = None) -> Part:
    """One part: its header lines and its content."""
    disposition = f'Content-Disposition: form-data; name="{name}"'
    disposition += f'; filename="{filename}"' if filename is not None else ""
    lines = [disposition, *([f"Content-Type: {kind}"] if kind else [])]
    return "\r\n".join(lines), value if isinstance(value, bytes) else value.encode()


def form(*parts: Part, boundary: str = BOUNDARY) -> bytes:
    """A whole body."""
    return (
        b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
        + f"--{boundary}--\r\n".encode()
    )
