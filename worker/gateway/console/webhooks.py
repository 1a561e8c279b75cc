"""Callbacks: which were delivered, are tried again or were given up, how each try went, and delivering again."""

from __future__ import annotations

from psycopg.errors import QueryCanceled
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked
from worker.gateway.console.pages import confirm, page
from worker.ledger import manage, trail, webhooks
from worker.ledger.manage import Filter
from worker.ledger.operators import Operator
from worker.states import JobState

#: Deliveries of one page, and seconds that looking for them may take.
_PAGE, _LONGEST_S = 50, 5
_STATES = tuple(JobState)


@viewer
def show(request: Request, who: Operator) -> Response:
    """List deliveries, the newest first."""
    given = {name: asked(request, name) for name in ("job", "state", "caller", "before")}
    which = webhooks.among(Filter([given["state"]] if given["state"] else None, caller=given["caller"] or None))
    try:
        with statement() as conn:
            rows = []
            if given["job"]:
                found = [manage.show(conn, delivery) for delivery in webhooks.deliveries_of(conn, given["job"])]
            else:
                rows = manage.list_jobs_within(conn, _LONGEST_S, which, limit=_PAGE, before=given["before"] or None)
                found = [manage.show(conn, row["id"]) for row in rows]
    except QueryCanceled:
        return _refused(request, Draft(given, f"It takes more than {_LONGEST_S} s to look for these: narrow it."))
    except REFUSALS as exc:
        return _refused(request, Draft.refused(given, exc, {}))
    older = rows[-1]["cursor"] if len(rows) == _PAGE else None
    deliveries = [webhooks.told(row) for row in found]
    return page(request, "webhooks.html", draft=Draft(given), deliveries=deliveries, older=older, states=_STATES)


@viewer
def show_one(request: Request, who: Operator) -> Response:
    """Show a delivery: what is told, to whom, and how each try went."""
    with statement() as conn:
        row = webhooks.show(conn, asked(request, "id"))
    return page(request, "webhook.html", delivery=webhooks.told(row), attempts=row["attempts"])


@operator
def redeliver(request: Request, who: Operator) -> Response:
    """Deliver again, now, under the same webhook-id."""
    delivery = form(request).get("id", "")
    warning = "It goes out under the same webhook-id, so that whoever has had it can tell."
    if (question := confirm(request, f"Deliver {delivery} again?", warning, do="Deliver again", danger=False)) is not None:
        return question
    with trail.recording(who.name, "webhook.redeliver", delivery) as conn:
        how = webhooks.redeliver(conn, delivery)
    return done(request, f"{delivery} is {how}.")


def _refused(request: Request, draft: Draft) -> Response:
    return page(request, "webhooks.html", status=422, draft=draft, deliveries=[], older=None, states=_STATES)


routes = [
    Route("/webhooks", show, methods=["GET"]),
    Route("/webhooks/one", show_one, methods=["GET"]),
    Route("/webhooks/redeliver", redeliver, methods=["POST"]),
]
