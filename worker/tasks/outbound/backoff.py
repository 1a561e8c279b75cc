"""How long to wait before a call is tried again."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Seconds: the first wait is up to this long, and each further one up to twice as long as the one before.
BASE_S = 1.0
#: Seconds: no wait is longer, unless the server asks for it.
CAP_S = 300.0
#: Seconds: the longest wait a server can ask for.
LONGEST_S = 3600.0


def parse_retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds a `Retry-After` header asks for (RFC 9110, 10.2.3: seconds or a date); None when it makes no sense."""
    text = text.strip()
    if re.fullmatch(r"[0-9]+", text):
        return LONGEST_S if len(text) > 9 else min(float(text), LONGEST_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), LONGEST_S)


def delay_s(
    retries: int,
    retry_after_s: float | None = None,
    *,
    base_s: float = BASE_S,
    cap_s: float = CAP_S,
    chance: Callable[[], float] = random.random,
) -> float:
    """Return the seconds to wait before the next try, after `retries` earlier ones.

    Exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): anything between zero and the bound, so
    that callers who failed together do not come back together. What the server asked for is waited out instead, and up to a
    second more for the same reason. `chance` returns a number from 0 to 1.
    """
    if retry_after_s is not None:
        return min(retry_after_s + chance() * BASE_S, LONGEST_S)
    # The exponent is held: 2.0 ** 1024 is an error.
    return chance() * min(cap_s, base_s * 2.0 ** min(retries, 32))
