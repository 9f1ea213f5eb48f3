"""``python -m contracts.compile``: compile the sources with the pinned compiler and write the artifacts.

The compiler and the libraries come from npm by ``package-lock.json``, into a cache outside the checkout.
Nothing of the machine reaches an artifact: names are relative, and the metadata hash is left out.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.devnet.toolchain import install, node

ROOT = Path(__file__).parent
ARTIFACTS = ROOT / "artifacts"
COMPILE_TIMEOUT_S = 120
SETTINGS: dict[str, Any] = {
    "evmVersion": "cancun",
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
    "optimizer": {"enabled": True, "runs": 200},
    "viaIR": True,
}
SELECTION = {"*": {"*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"]}}


class CompilationFailed(Exception):
    """The compiler refused the sources; the message is what it said."""


def compile_sources(sources: dict[str, str]) -> dict[str, str]:
    """Artifacts by contract name, as the texts that are committed, for sources by relative name."""
    request = {
        "language": "Solidity",
        "sources": {name: {"content": text} for name, text in sources.items()},
        "settings": {**SETTINGS, "outputSelection": SELECTION},
    }
    packages = install(ROOT)
    done = subprocess.run(  # noqa: S603 - our own arguments
        [str(node()), str(ROOT / "compile.cjs"), str(packages)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPILE_TIMEOUT_S,
    )
    if done.returncode:
        raise CompilationFailed(done.stderr)
    answer = json.loads(done.stdout)
    problems = [entry["formattedMessage"] for entry in answer.get("errors", ()) if _ours(entry, sources)]
    if problems:
        raise CompilationFailed("\n".join(problems))
    version = json.loads((ROOT / "package.json").read_text())["devDependencies"]["solc"]
    return {
        name: _artifact(name, source, compiled, version)
        for source, contracts in answer["contracts"].items()
        if source in sources
        for name, compiled in contracts.items()
        if compiled["evm"]["bytecode"]["object"]
    }


def read_sources() -> dict[str, str]:
    """The sources of the checkout by relative name."""
    paths = sorted((ROOT / "src").rglob("*.sol"))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def _ours(entry: dict[str, Any], sources: dict[str, str]) -> bool:
    # Libraries may warn; our own sources may not.
    return entry["severity"] == "error" or entry.get("sourceLocation", {}).get("file") in sources


def _artifact(name: str, source: str, compiled: dict[str, Any], version: str) -> str:
    body = {
        "contractName": name,
        "sourceName": source,
        "compiler": {"version": version, "settings": SETTINGS},
        "abi": compiled["abi"],
        "bytecode": "0x" + compiled["evm"]["bytecode"]["object"],
        "deployedBytecode": "0x" + compiled["evm"]["deployedBytecode"]["object"],
    }
    # One ABI entry a line: small, and a change of the interface shows in a diff.
    entries = ",\n    ".join(json.dumps(entry, separators=(",", ":")) for entry in body["abi"])
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in body.items() if key != "abi"]
    lines.insert(3, f'  "abi": [\n    {entries}\n  ]' if entries else '  "abi": []')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    """Write the artifacts, and remove those of contracts that are gone."""
    try:
        artifacts = compile_sources(read_sources())
    except CompilationFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    ARTIFACTS.mkdir(exist_ok=True)
    for path in ARTIFACTS.glob("*.json"):
        if path.stem not in artifacts:
            path.unlink()
    for name, text in artifacts.items():
        (ARTIFACTS / f"{name}.json").write_text(text, "utf-8")
    sys.stdout.write(f"wrote {', '.join(sorted(artifacts))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
