"""``make demo``: the story ends well, and its numbers are true."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def amounts(told: str) -> tuple[int, int, int]:
    """What was spent, what the payee got and what the payer lacks, in base units."""
    lines = told.splitlines()
    starts = ("spent by", "the payee", "the payer")
    found = [next(line for line in lines if line.strip().startswith(start)) for start in starts]
    spent, paid, left = (int(re.findall(r"\d+\.\d{6}", line)[0].replace(".", "")) for line in found)
    return spent, paid, left


def test_demo_tells_a_channels_whole_life() -> None:
    command = [sys.executable, "-m", "app.devnet.demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    for action in ("open 1 on", "voucher", "topUp", "close"):
        assert f"Authorization: Payment  {action}" in told
    assert "<- 402  challenge: 1 base unit(s) now" in told
    spent, paid, left = amounts(told)
    assert 0 < paid < spent < left
    assert "the books balance" in told
