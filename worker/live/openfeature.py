"""The OpenFeature provider of Holdfast's flags, which are booleans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata

from worker.live.flags import WHOLE, Flag, Snapshot


class HoldfastProvider(AbstractProvider):
    """Answers OpenFeature from the flags that this process knows.

        openfeature.api.set_provider(HoldfastProvider(lambda: feed.snapshot))
        client.get_boolean_value("new-report", False, EvaluationContext("user-7", {"caller": "acme"}))

    The targeting key is the key of a roll-out; text attributes are the attributes of the rule. **Guarantee:** it answers from
    memory, as the flags themselves do: neither server being away makes it fail or wait, and of a flag that nobody knows, or of
    another type than boolean, it returns the caller's default with the reason.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        super().__init__()
        self._snapshot = snapshot

    def get_metadata(self) -> Metadata:
        """Return the provider's name."""
        return Metadata("holdfast")

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Decide a flag."""
        found = self._snapshot().flags.get(flag_key)
        if found is None:
            return _default(flag_key, default_value, None)
        key, attributes = _context(evaluation_context)
        value = found.is_on(key, attributes)
        metadata = {"revision": found.revision}
        return FlagResolutionDetails(value, reason=_reason(found), variant="on" if value else "off", flag_metadata=metadata)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Return the default: no flag holds text."""
        return _default(flag_key, default_value, self._snapshot().flags.get(flag_key))

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Return the default: no flag holds a number."""
        return _default(flag_key, default_value, self._snapshot().flags.get(flag_key))

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Return the default: no flag holds a number."""
        return _default(flag_key, default_value, self._snapshot().flags.get(flag_key))

    def resolve_object_details(
        self, flag_key: str, default_value: Any, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Sequence[Any] | Mapping[str, Any]]:
        """Return the default: no flag holds an object."""
        return _default(flag_key, default_value, self._snapshot().flags.get(flag_key))


def _context(given: EvaluationContext | None) -> tuple[str, Mapping[str, str]]:
    if given is None:
        return "", {}
    return given.targeting_key or "", {name: value for name, value in given.attributes.items() if isinstance(value, str)}


def _reason(found: Flag) -> Reason:
    if found.allow or found.deny:
        return Reason.TARGETING_MATCH
    if found.on and found.share is not None and found.share < WHOLE:
        return Reason.SPLIT
    return Reason.STATIC if found.on else Reason.DISABLED


def _default(name: str, value: Any, found: Flag | None) -> FlagResolutionDetails[Any]:
    code, why = (ErrorCode.FLAG_NOT_FOUND, "no flag") if found is None else (ErrorCode.TYPE_MISMATCH, "it is a boolean: flag")
    return FlagResolutionDetails(value, reason=Reason.ERROR, error_code=code, error_message=f"{why} {name!r}")
