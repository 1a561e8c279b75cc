"""`holdfast limits` and `holdfast usage` on real servers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.integration.test_cli import Said
from tests.integration.test_cli import holdfast as holdfast
from worker.ledger import limits, usage
from worker.ledger.usage import Actual
from worker.limits import Spend

USER = "org:acme/user:7"


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=5000)


def test_policy_is_set_listed_replaced_and_removed(holdfast: Callable[..., Said]) -> None:
    said = holdfast("limits", "set", "host", "{host}", "10/second", "local", "--json")
    assert (said.code, said.document["rate"], said.document["on_outage"]) == (0, "10/second sliding", "local")
    assert holdfast("limits", "set", "host {host} 20/second").code == 0
    assert [(row["name"], row["rate"]) for row in holdfast("limits", "ls", "--json").document] == [("host", "20/second sliding")]
    assert "{host}" in holdfast("limits", "ls").out
    assert holdfast("limits", "rm", "host").out == "removed: host\n"
    said = holdfast("limits", "rm", "host")
    assert (said.code, said.out) == (5, "")
    assert holdfast("limits", "ls", "--json").document == []


def test_policy_that_is_off_does_not_hold(holdfast: Callable[..., Said]) -> None:
    assert holdfast("limits", "set", "host {host} 10/second", "--off").code == 0
    assert limits.charges_for({"kwargs": {"host": "a"}}) == []


def test_bad_policy_is_told_in_one_line_and_nothing_is_set(holdfast: Callable[..., Said]) -> None:
    said = holdfast("limits", "set", "host {nobody} 10/second")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "'nobody', which is none of task, queue, caller" in said.err
    assert holdfast("limits", "ls", "--json").document == []


def test_key_is_shown_with_what_is_left_and_reset(holdfast: Callable[..., Said]) -> None:
    holdfast("limits", "set", "host {host} 2/minute")
    (charge,) = limits.charges_for({"kwargs": {"host": "a.example"}})
    charge.limit.try_acquire(charge.key, 2)  # type: ignore[attr-defined]
    shown = holdfast("limits", "show", "host:a.example", "--json").document
    assert (shown["allowed"], shown["limit"], shown["remaining"]) == (False, "host:a.example", 0)
    assert 0 < shown["retry_after_s"] <= 61
    assert "refuses; 0 left" in holdfast("limits", "show", "host:a.example").out
    assert holdfast("limits", "reset", "host:a.example").out == "reset: host:a.example\n"
    assert holdfast("limits", "show", "host:a.example", "--json").document["allowed"] is True


def test_subject_is_shown_with_its_budgets_and_reset_forgets_no_spend(holdfast: Callable[..., Said]) -> None:
    holdfast("limits", "set", "budget org:* 1000 tokens/day")
    call = usage.reserve(USER, Spend(tokens=400))
    usage.settle(call.id, Actual(tokens_in=300, micros=7))
    usage.reserve(USER, Spend(tokens=50))
    (row,) = holdfast("limits", "show", USER, "--json").document
    assert (row["subject"], row["period"], row["tokens"], row["open_tokens"]) == ("org:acme", "day", 350, 50)
    assert holdfast("limits", "reset", USER).code == 0
    assert holdfast("limits", "show", USER, "--json").document == []
    assert not usage.reserve(USER, Spend(tokens=651))
    assert holdfast("limits", "show", "nothing").code == 2


def test_usage_shows_spend_by_subject_model_and_day(holdfast: Callable[..., Said]) -> None:
    for model, tokens in (("small", 10), ("large", 20)):
        call = usage.reserve(USER, Spend(tokens=tokens), model=model)
        usage.settle(call.id, Actual(tokens_in=tokens, tokens_out=1, micros=5))
    today = datetime.now(UTC).date().isoformat()
    rows = holdfast("usage", "--json").document
    assert [(row["subject"], row["model"], row["tokens_in"]) for row in rows] == [(USER, "large", 20), (USER, "small", 10)]
    assert {row["day"] for row in rows} <= {today, datetime.now(UTC).date().isoformat()}
    (total,) = holdfast("usage", "--by", "subject", "--subject", "org:acme", "--json").document
    assert (total["requests"], total["tokens_out"], total["micros"]) == (2, 2, 10)
    assert holdfast("usage", "--subject", "org:other", "--json").document == []
    assert "large" in holdfast("usage").out
    assert holdfast("usage", "--by", "color").code == 2
