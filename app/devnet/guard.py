"""``python guard.py PROGRAM ...``: run a program that must not outlive its owner.

The owner holds the other end of standard input. However the owner ends, by SIGKILL too, the kernel closes
it, and the program is stopped. Run as a file, isolated: nothing of Farebox is imported, so it starts fast.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

STOP_TIMEOUT_S = 10
_PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    # Linux alone has this; elsewhere a guard that is itself killed leaves the program to its owner's stop.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(command: list[str]) -> int:
    """Run until the program ends or standard input does."""
    # Alone in its process: no other thread can hold a lock across the fork.
    program = subprocess.Popen(  # noqa: S603 - what the owner says
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_guard,  # noqa: PLW1509
    )

    def watch() -> None:
        while os.read(0, 4096):
            pass
        program.terminate()
        try:
            program.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=watch, daemon=True).start()
    return program.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
