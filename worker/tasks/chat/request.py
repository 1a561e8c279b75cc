"""What a chat may ask for: its arguments checked, and what it will take at the most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import InvalidRequest, SettingsError
from worker.limits import Spend
from worker.limits.plan import levels
from worker.settings import settings
from worker.tasks.chat import tokens
from worker.tasks.chat.prices import Price, price_of

#: Seconds: the longest a call may be given.
MAX_TIMEOUT_S = 3600.0
#: Answers a call may ask for.
_MOST_ANSWERS = 128
#: Set here: what is asked for is metered while it streams.
_OURS = ("model", "messages", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Chat:
    """A call that is sound in itself."""

    base_url: str
    #: Whose budget it counts in, as `org:acme/user:7`.
    subject: str
    model: str
    messages: list[Any]
    #: What else goes into the body of the request, the bound of its answer among it.
    options: dict[str, Any]
    timeout_s: float
    cache: bool
    #: None for a model that is not in the price table.
    price: Price | None

    @property
    def tokens_in(self) -> int:
        """The tokens that are sent, by estimate."""
        return tokens.of_input(self.messages, self.options)

    @property
    def estimate(self) -> Spend:
        """The most that it takes, as far as that can be told before."""
        tokens_in, tokens_out = self.tokens_in, tokens.of_output(self.options)
        return Spend(1, tokens_in + tokens_out, self.price and self.price.of(tokens_in, tokens_out))

    @property
    def digest(self) -> str:
        """What is equal for two calls that get the same answer. Subjects share answers within their first level, not beyond."""
        what = [levels(self.subject)[0], self.base_url, self.model, self.messages, self.options]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def prepare(
    messages: Any,
    model: Any,
    *,
    subject: str | None = None,
    user: Any = None,
    options: Mapping[str, Any] | None = None,
    timeout_s: Any = None,
    cache: Any = False,
) -> Chat:
    """Check the arguments of a call and return it.

    Raises `InvalidRequest` that names the argument, `InvalidLimit` for a subject or user that is none, `SettingsError` when no
    API is configured.
    """
    conf = settings()
    if not conf.llm_base_url:
        raise SettingsError("HOLDFAST_LLM_BASE_URL is not set: llm.chat calls the API there, such as https://api.example.com/v1")
    if not isinstance(model, str) or not model or any(sign.isspace() for sign in model) or len(model) > 200:
        raise InvalidRequest(f"model {str(model)[:60]!r}: must be a name of 1 to 200 characters without spaces")
    if not isinstance(messages, list | tuple) or not messages or not all(isinstance(one, Mapping) for one in messages):
        raise InvalidRequest("messages: must be a list of objects such as {'role': 'user', 'content': 'Hello'}")
    who = (conf.llm_subject if subject is None else subject) + ("" if user is None else f"/user:{user}")
    levels(who)
    checked = _options(options, conf.llm_max_output_tokens)
    if cache is not False and (cache is not True or checked.get("temperature") != 0):
        raise InvalidRequest(f"cache {cache!r}: may be true only with the option temperature 0, which asks for the same answer")
    seconds = _seconds(conf.llm_timeout_s if timeout_s is None else timeout_s)
    price = price_of(conf.llm_prices, model)
    return Chat(conf.llm_base_url.rstrip("/"), who, model, list(messages), checked, seconds, cache, price)


def _options(options: Any, most_tokens: int) -> dict[str, Any]:
    if not isinstance(options, Mapping | None):
        raise InvalidRequest("options: must be an object of what else the API takes, such as {'temperature': 0}")
    checked = dict(options or {})
    if ours := [name for name in _OURS if name in checked]:
        raise InvalidRequest(f"options: {ours[0]} is set by llm.chat itself")
    bounds = [name for name in tokens.BOUNDS if checked.get(name) is not None]
    if not bounds:
        checked[tokens.BOUNDS[0]] = most_tokens
    for name, most in (*((bound, 10**9) for bound in bounds), ("n", _MOST_ANSWERS)):
        value = checked.get(name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise InvalidRequest(f"options: {name} {value!r}: must be a whole number from 1 to {most}")
    return checked


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIMEOUT_S:
        raise InvalidRequest(f"timeout_s {value!r}: must be a number of seconds above 0 and up to {MAX_TIMEOUT_S:g}")
    return float(value)
