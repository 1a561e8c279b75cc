"""Enqueue with one system and print how long it took: `python -m benchmarks.peers NAME VERB WHAT`."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata

from benchmarks import meter

#: Calls before the clock starts, which connect and warm caches.
WARM = 50


def main() -> None:
    """Do what the command line says."""
    name, verb, what = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    try:
        peer = import_module(f"benchmarks.peers.{name}")
    except ImportError as exc:
        print(json.dumps({"missing": str(exc)}))
        return
    if verb == "prepare":
        getattr(peer, "prepare", lambda: None)()
        about = {"title": peer.TITLE, "version": _version(peer.PACKAGE), "setup": peer.SETUP, "worker": peer.WORKER,
                 "workers": getattr(peer, "WORKERS", 1), "helpers": getattr(peer, "HELPERS", ())}  # fmt: skip
        print(json.dumps(about))
        return
    if verb == "work":
        for job in range(what["first"], what["first"] + what["jobs"]):
            peer.work.apply_async((job, what["seconds"]), countdown=what["countdown"])
        print("{}")
        return
    if verb.endswith("_one"):
        print(json.dumps(_latencies(getattr(peer, verb), what)))
        return
    peer.delay(WARM)
    start = time.perf_counter()
    getattr(peer, verb)(what)
    print(json.dumps({"seconds": time.perf_counter() - start, "jobs": WARM + what}))


def _latencies(enqueue_one: Callable[[int], float], count: int) -> list[float]:
    """Enqueue one job at a time, each on an idle system, and return the seconds until each started."""
    found = []
    for job in range(WARM + count):
        sent = enqueue_one(job)
        while (started := meter.starts().get(job)) is None:
            time.sleep(0.002)
        found.append(started - sent)
        time.sleep(random.uniform(0.01, 0.03))
    return found[WARM:]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "this tree"


if __name__ == "__main__":
    main()
