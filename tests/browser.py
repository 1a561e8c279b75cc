"""The browser that tests of the console run in: a Chromium of this machine, or Debian's, put in where that can be done.

`python -m tests.browser` looks for it and says what there is; it fails only where CI is set and there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

#: What the tests say of themselves where there is no browser.
MISSING = "browser tests did not run: no Chromium"

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """Return the program of a Chromium; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def install() -> None:
    """Put Debian's Chromium in, where this process may."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print("putting Chromium in, for the browser tests", file=sys.stderr)
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def main() -> int:
    """Look for a browser, or put one in; return the exit code."""
    if find() is None:
        install()
    if find() is not None:
        return 0
    print(f"{MISSING} on this machine, and it could not be installed", file=sys.stderr)
    return 1 if os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main())
