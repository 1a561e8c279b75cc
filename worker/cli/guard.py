"""Kill the process groups of a supervisor that died, where the kernel does not do that.

The supervisor starts it with a pipe as stdin, on which `+ID` and `-ID` add and remove a group; the pipe ends with the supervisor.
It imports nothing of ours, to start at once.
"""

import os
import signal
import sys


def main() -> None:
    """Keep the list until the pipe ends, then kill what is on it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


if __name__ == "__main__":
    main()
