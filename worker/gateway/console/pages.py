"""Pages out of templates: how values are written in them, and what each page knows."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from worker import clock
from worker.gateway.console import nav, static
from worker.gateway.console.access import FLASH, back, form

#: Longest JSON that a page shows, in characters.
_LONGEST_JSON = 100_000
#: Behind what a name may break; none of it stands inside what escaping makes of a sign.
_BREAK = re.compile(r"([./:_-])(?=\w)")
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    """Return a whole page, which also says what waits in the session to be said."""
    return HTMLResponse(_render(request, template, flashes=request.session.pop(FLASH, []), **context), status)


def fragment(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    """Return a part of a page, for htmx."""
    return HTMLResponse(text(request, template, **context), status)


def text(request: Request, template: str, **context: Any) -> str:
    """Return a part of a page as text."""
    return _render(request, template, flashes=[], **context)


def confirm(
    request: Request, title: str, warning: str = "", *, do: str, danger: bool = True
) -> Response | None:
    """Return the page that asks whether a form is meant, or None when that was said already: `do` is what its button says.

    if (question := confirm(request, f"Pause {queue}?", "None of its jobs starts.", do="Pause")) is not None:
        return question
    """
    given = form(request)
    if given.get("confirmed") == "yes":
        return None
    fields = [(name, value) for name, value in given.multi_items() if name not in ("csrf_token", "confirmed")]
    return page(request, "confirm.html", title=title, warning=warning, do=do, danger=danger, fields=fields, back=back(request))


def _render(request: Request, template: str, **context: Any) -> str:
    path = request.scope["path"]
    state = request.scope.get("state", {})
    known = {
        "request_path": path, "here": f"{path}?{request.url.query}" if request.url.query else path,
        "current": nav.current(path), "menu": nav.MENU, "me": state.get("operator"), "csrf_token": state.get("csrf", ""),
        "theme": request.session.get("theme", "auto"),
    }  # fmt: skip
    return environment().get_template(template).render({**known, **context})


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates' environment: all that is put into a page is escaped, and what a page does not know is an error."""
    made = Environment(
        loader=PackageLoader("worker.gateway.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters.update(moment=moment, ago=ago, seconds=seconds, number=number, json_text=json_text,
                        breaking=breaking)  # fmt: skip
    made.globals.update(static=static.address)
    return made


# ---- filters


def moment(value: datetime | None, absent: str = "–") -> Markup | str:
    """Write a moment: how long ago or ahead it is, and the moment itself, in UTC, for who points at it."""
    if value is None:
        return absent
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S} UTC", ago(at))


def ago(value: datetime) -> str:
    """Say how long ago a moment is, or how far ahead."""
    past_s = (clock.now() - value).total_seconds()
    if abs(past_s) < 1:
        return "now"
    return f"{seconds(past_s)} ago" if past_s > 0 else f"in {seconds(-past_s)}"


def seconds(value: float | None, absent: str = "–") -> str:
    """Write a length of time in the two greatest of its units."""
    if value is None:
        return absent
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 10:
        return f"{value:.1f} s"
    at = next(at for at, (size, _) in enumerate(_SPANS) if value >= size)
    size, unit = _SPANS[at]
    count, rest = divmod(int(value), size)
    lesser = rest // _SPANS[at + 1][0] if unit != "s" else 0
    return f"{count:,} {unit} {lesser} {_SPANS[at + 1][1]}" if lesser and count < 100 else f"{count:,} {unit}"


def number(value: float | None, absent: str = "–") -> str:
    """Write a number with its thousands apart."""
    if value is None:
        return absent
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 or value == int(value) else f"{value:,.2f}"


def breaking(name: str) -> Markup:
    """Write a name that may break, where there is no room for it, behind a dot and the like rather than anywhere."""
    return Markup(_BREAK.sub(r"\1<wbr>", str(escape(name))))  # noqa: S704 - escaped before anything is put in


def json_text(value: Any) -> str:
    """Write a value as JSON for people, cut where it is too long to be looked at."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    said = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return said if len(said) <= _LONGEST_JSON else f"{said[:_LONGEST_JSON]}\n… {len(said) - _LONGEST_JSON:,} characters more"
