"""The price table: what a million tokens of a model cost, in millionths of money."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

#: Prices are for so many tokens, as providers write them.
_TOKENS = 1_000_000


class Price(NamedTuple):
    """Micros a million tokens: sent, returned, and sent again where the provider had them in its cache."""

    tokens_in: int
    tokens_out: int
    cached_in: int

    def of(self, tokens_in: int, tokens_out: int, cached_in: int = 0) -> int:
        """Return the micros of a call, rounded up: a thousand small calls are not free. `cached_in` is part of `tokens_in`."""
        cached = min(cached_in, tokens_in)
        cost = (tokens_in - cached) * self.tokens_in + cached * self.cached_in + tokens_out * self.tokens_out
        return -(-cost // _TOKENS)


def price_of(lines: Sequence[str], model: str) -> Price | None:
    """Return a model's price by the setting `llm_prices`, or None: its own, else that of the longest `prefix*` that fits."""
    return _found(tuple(lines), model)


@lru_cache(maxsize=256)
def _found(lines: tuple[str, ...], model: str) -> Price | None:
    table = dict(map(_line, lines))
    prefixes = sorted((name[:-1] for name in table if name.endswith("*") and model.startswith(name[:-1])), key=len)
    return table.get(model) or (table[prefixes[-1] + "*"] if prefixes else None)


def _line(text: str) -> tuple[str, Price]:
    model, tokens_in, tokens_out, *cached_in = text.split()
    return model, Price(int(tokens_in), int(tokens_out), int(cached_in[0] if cached_in else tokens_in))
