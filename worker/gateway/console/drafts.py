"""Forms that come back: what was entered, and the one error beside the field that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from worker.errors import HoldfastError, LedgerUnavailable, StoreUnavailable

#: What says that a form cannot be carried out as it was filled in; see `Draft.refused`.
REFUSALS = (HoldfastError, ValueError)


@dataclass(frozen=True)
class Draft:
    """A form as it stands, to be shown."""

    values: Mapping[str, str] = field(default_factory=dict)
    #: What is wrong, and with which field; no field where it is about the whole.
    error: str = ""
    wrong: str = ""

    @classmethod
    def refused(cls, given: Mapping[str, str], exc: Exception, names: Mapping[str, str]) -> Draft:
        """Return the form with what was entered and why it is refused; raise what was raised unless it is about that.

        `names` says in which field of the form stands what an error names, as {"every_s": "every"}.
        """
        told = isinstance(exc, HoldfastError) or type(exc) is ValueError
        if not told or isinstance(exc, LedgerUnavailable | StoreUnavailable):
            raise exc
        named, _, rest = str(exc).partition(": ")
        about = [str(getattr(exc, "field", "")).partition(".")[0], named]
        return cls(given, rest if named in names else str(exc), next((names[name] for name in about if name in names), ""))


def asked(request: Request, name: str) -> str:
    """Return what an address asks for by a name; U+0000 written out, which no server keeps."""
    return request.query_params.get(name, "").strip().replace("\0", "\\0")


def words(text: str) -> list[str]:
    """Return the words of a field that takes several, separated by blanks, commas or lines."""
    return text.replace(",", " ").split()


def lines(text: str) -> list[str]:
    """Return the lines of a field that takes one thing a line, without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]
