"""A circuit breaker shared by the fleet: a party that fails again and again is left alone for a while, then tried by one."""

from __future__ import annotations

from dataclasses import dataclass

from worker.errors import StoreUnavailable
from worker.store import keys, limits, script
from worker.telemetry import OUTAGES

_ask = script("circuit_ask")
_fail = script("circuit_fail")

#: Seconds after which a party that nobody calls any more is forgotten, at the least.
_LIFE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """The circuit of one party, by name.

        circuit = Circuit(f"webhook:{host}")
        if wait_s := circuit.wait_s():
            ...  # come back then
        circuit.failed() if ... else circuit.succeeded()

    **Guarantee:** after so many `failures` in a row nobody in the fleet calls for `open_s`, twice as long after each further one,
    `longest_s` at most; then one caller at a time tries. A Redis that restarts or is away forgets failures: then all call.
    """

    name: str
    failures: int = 5
    open_s: float = 5.0
    longest_s: float = 300.0
    #: Seconds the one that tries is given before the next may.
    try_s: float = 30.0

    def wait_s(self) -> float:
        """Return the seconds to wait before the party may be called; 0 to go ahead, which fails open."""
        try:
            (wait_ms,) = limits().ask([_ask.command([keys.circuit(self.name)], [self.failures, int(self.try_s * 1000)])])
        except StoreUnavailable:
            OUTAGES.labels("circuit", "closed").inc()
            return 0.0
        return float(wait_ms) / 1000

    def failed(self) -> None:
        """Note that the party failed."""
        life_ms = int(max(_LIFE_S, 2 * self.longest_s) * 1000)
        arguments = [self.failures, int(self.open_s * 1000), int(self.longest_s * 1000), life_ms]
        self._tell(_fail.command([keys.circuit(self.name)], arguments))

    def succeeded(self) -> None:
        """Note that the party answered."""
        self._tell(("DEL", keys.circuit(self.name)))

    def _tell(self, command: tuple[object, ...]) -> None:
        try:
            limits().ask([command])
        except StoreUnavailable:
            OUTAGES.labels("circuit", "not counted").inc()
