"""Forms that are filled in wrongly, and how they must come back."""

from __future__ import annotations

import html
from collections.abc import Mapping

from tests.console.visitors import Visitor


def come_back(visitor: Visitor, path: str, good: Mapping[str, str], field: str, value: str, said: str) -> None:
    """Send a form with one field wrong: it must come back with what was entered, and the error at that field."""
    answer = visitor.send_form(path, {**good, field: value})
    text = html.unescape(answer.text)
    assert answer.status_code == 422, (field, value, answer.status_code)
    assert f'id="e-{field}"' in text, (field, value)
    assert said in text.partition(f'id="e-{field}"')[2].partition("</strong>")[0], (field, value, text)
    kept = next(entered for name, entered in {**good, field: value}.items() if entered and name != "csrf_token")
    assert kept in text, (field, kept)
