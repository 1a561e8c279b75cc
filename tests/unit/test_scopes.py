"""Templates of keys: what they may name, and that a call cannot reach through them to anything else."""

from __future__ import annotations

import pytest

from worker.errors import InvalidLimit
from worker.limits.scope import Scope

KNOWN = {"task": "t", "queue": "q", "caller": None, "args": ["zero", ["nested"]], "kwargs": {"host": "h", "n": 7, "none": None}}


@pytest.mark.parametrize(
    ("template", "key"),
    [("{host}", "h"), ("{kwargs[n]}:{args[0]}", "7:zero"), ("{task}@{queue}", "t@q"), ("plain", "plain"),
     ("{caller}", None), ("{kwargs[none]}", None), ("{kwargs[gone]}", None), ("{args[1]}", None), ("{args[9]}", None),
     ("{model}", None), ("{kwargs[__class__]}", None)],
)  # fmt: skip
def test_template_names_what_is_known_of_a_call_or_has_no_key(template: str, key: str | None) -> None:
    assert Scope(template).key(KNOWN) == key


def test_value_that_looks_like_a_template_stays_what_it_is() -> None:
    assert Scope("{host}").key({"kwargs": {"host": "{kwargs[password]}{0.__class__}%s", "password": "p"}}) == (
        "{kwargs[password]}{0.__class__}%s"
    )


@pytest.mark.parametrize(
    "template",
    ["{kwargs.__class__}", "{host.__class__}", "{kwargs[a].b}", "{kwargs[a][b]}", "{host!r}", "{host:>999999999}", "{0}", "{}",
     "{{host}}", "{", "host}", "{nobody}", "{kwargs}", "{args}", "{args[]}", "{args[x]}", "{args[-1]}", "{args[\u0663]}",
     "{args[" + "9" * 5000 + "]}", "{task[0]}", "{host} x", "x" * 256, "", None, 7],
)  # fmt: skip
def test_template_that_reaches_for_anything_else_is_refused(template: object) -> None:
    with pytest.raises(InvalidLimit, match=r"^scope: ") as found:
        Scope(template)  # type: ignore[arg-type]
    assert repr(template) in str(found.value)
