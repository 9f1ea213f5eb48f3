"""``python -m contracts.check``: the committed artifacts are exactly what the sources compile to."""

import sys

from contracts.compile import ARTIFACTS, CompilationFailed, compile_sources, read_sources


def differences(compiled: dict[str, str]) -> list[str]:
    """What a person would have to commit; empty when there is nothing."""
    committed = {path.stem: path.read_text("utf-8") for path in ARTIFACTS.glob("*.json")}
    names = sorted(committed.keys() | compiled.keys())
    return [name for name in names if committed.get(name) != compiled.get(name)]


def main() -> int:
    """Say what differs; 1 if anything does."""
    try:
        changed = differences(compile_sources(read_sources()))
    except CompilationFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name in changed:
        sys.stderr.write(f"{name}: the artifact is not what the source compiles to; run python -m contracts.compile\n")
    sys.stdout.write("artifacts match the sources\n" if not changed else "")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
