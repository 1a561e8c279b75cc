"""What has arrived of an answer, chunk by chunk, and what of it is known if no more comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from worker.limits.plan import MOST
from worker.tasks.chat.tokens import of_text

#: Parts of a chunk that are told once, where all other text goes on from chunk to chunk.
_ONCE = frozenset(("role", "id", "type", "index", "finish_reason"))


class Counted(NamedTuple):
    """The tokens of a call as its provider counted them."""

    tokens_in: int
    tokens_out: int
    #: Of those sent, the ones it had in its cache.
    cached_in: int = 0


class Answer:
    """An answer as far as it has come."""

    def __init__(self) -> None:
        self.counted: Counted | None = None
        self._about: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take in a chunk, as the API streams it."""
        self._about.update({name: chunk[name] for name in ("id", "model", "created") if chunk.get(name) is not None})
        self.counted = _counted(chunk.get("usage")) or self.counted
        for part in chunk.get("choices") or ():
            choice = self._choices.setdefault(int(part.get("index") or 0), {"message": {}, "finish_reason": None})
            _merge(choice["message"], part.get("delta") or {})
            if logprobs := part.get("logprobs"):
                _extend(choice.setdefault("logprobs", {}), logprobs)
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]

    @property
    def complete(self) -> bool:
        """Whether each of its choices has come to an end."""
        return bool(self._choices) and all(choice["finish_reason"] for choice in self._choices.values())

    @property
    def tokens_out(self) -> int:
        """The tokens that have arrived, by estimate."""
        return sum(of_text(text) for choice in self._choices.values() for text in _texts(choice["message"]))

    def told(self) -> dict[str, Any]:
        """Return it as the API tells a completion, without its usage, and the text of the first choice as `content`."""
        choices = [{"index": index, **self._choices[index]} for index in sorted(self._choices)]
        return {**self._about, "content": choices[0]["message"].get("content"), "choices": choices}


def _counted(usage: Any) -> Counted | None:
    """Return what a chunk says of usage; None when it says nothing, or nothing that can be counted."""
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    amounts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0)
    if not all(type(amount) is int and 0 <= amount <= MOST // 2 for amount in amounts):
        return None
    return Counted(*amounts)  # type: ignore[arg-type]


def _merge(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if value is None or (name in _ONCE and into.get(name)):
            continue
        if isinstance(value, str) and name not in _ONCE:
            into[name] = (into.get(name) or "") + value
        elif isinstance(value, Mapping):
            _merge(into.setdefault(name, {}), value)
        elif name == "tool_calls":
            _merge_calls(into.setdefault(name, []), value)
        else:
            into[name] = value


def _merge_calls(into: list[dict[str, Any]], parts: Any) -> None:
    for part in parts:
        known = next((call for call in into if call.get("index") == part.get("index")), None)
        if known is None:
            into.append(known := {})
        _merge(known, part)


def _extend(into: dict[str, Any], logprobs: Mapping[str, Any]) -> None:
    for name, tokens in logprobs.items():
        into[name] = (into.get(name) or []) + (tokens or [])


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, str) and name not in _ONCE:
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value)
        elif isinstance(value, list):
            for part in value:
                if isinstance(part, Mapping):
                    yield from _texts(part)
