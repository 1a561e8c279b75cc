"""`holdfast limits`: see and set policies, look at what a key has left, and forget what it was charged."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worker.cli import options
from worker.cli.output import emit, record, table
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="See, set and reset limits and budgets.")

_COLUMNS = {"name": "name", "kind": "kind", "scope": "scope", "rate": "rate", "on_outage": "without Redis",
            "status": "status"}  # fmt: skip
_WINDOWS = {"subject": "subject", "period": "period", "requests": "requests", "tokens": "tokens", "micros": "micros",
            "open_calls": "open calls", "open_tokens": "open tokens", "open_micros": "open micros",
            "budget": "budget"}  # fmt: skip

_Key = Annotated[
    str, typer.Argument(metavar="KEY", help="A limit's name and key, as in host:api.example.com, or a subject: org:acme/user:7.")
]


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the policies that hold: those of the setting `limits`, and those set here, which stand before them."""
    with services():
        from worker.ledger import limits

        rows = limits.policies()
    if as_json:
        emit(rows)
    else:
        table([{**row, "status": "on" if row["enabled"] else "off"} for row in rows], _COLUMNS, cut=("rate", "scope"))


@app.command("show")
def show(key: _Key, as_json: options.AsJson = False) -> None:
    """Show what a key has left and when to come again, or what a subject has spent of its budgets."""
    with services():
        charge = _charge(key)
        if charge is None:
            rows = _windows(key)
            emit(rows) if as_json else table(rows, _WINDOWS, cut=("budget",))
            return
        from worker.limits import ask_all

        (decision,) = ask_all([charge], holder="?", take=False)
    emit(decision._asdict()) if as_json else record([*decision._asdict().items(), ("explained", decision.explain())])


@app.command("reset")
def reset(key: _Key) -> None:
    """Forget what a key was charged. What a subject has spent is not forgotten, but read from Postgres anew."""
    with services():
        charge = _charge(key)
        if charge is not None:
            charge.limit.reset(charge.key)
        else:
            from worker.ledger import standings

            standings.forget(key)
    print(f"reset: {key}")


@app.command("set")
def set_(
    policy: Annotated[
        list[str], typer.Argument(metavar="POLICY", help="As in: host {host} 10/second local; budget org:* 9000 tokens/day.")
    ],
    off: Annotated[bool, typer.Option("--off", help="Keep it without letting it hold.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Set a policy, new or in the place of the one with its name; it holds at once, in every process."""
    from worker.limits.policy import parse_policy

    read = parse_policy(" ".join(policy))
    with services():
        from worker.db import statement
        from worker.ledger import limits

        with statement() as conn:
            kept = limits.put(conn, {**read, "enabled": not off})
    emit(kept) if as_json else record(kept.items())


@app.command("rm")
def rm(name: Annotated[str, typer.Argument(metavar="NAME", help="The policy.")]) -> None:
    """Remove a policy that was set here; one of the setting `limits` with its name holds again."""
    with services():
        from worker.db import statement
        from worker.ledger import limits

        with statement() as conn:
            limits.remove(conn, name)
    print(f"removed: {name}")


def _charge(key: str) -> Any:
    """Return one unit on the limit that a key names, or None when no limit has that name."""
    from worker.ledger import limits

    name, _, of = key.partition(":")
    return limits.charge_on(name, of)


def _windows(subject: str) -> list[dict[str, Any]]:
    from worker.ledger import limits
    from worker.limits import Budgets

    plan = limits.plan()
    return [
        {
            "subject": window.subject, "period": window.period, **level.spent._asdict(),
            "open_calls": level.open.requests, "open_tokens": level.open.tokens, "open_micros": level.open.micros,
            "budget": str(plan.budget_of(window.subject) or ""),
        }
        for window, level in Budgets(plan).peek(subject).items()
    ]  # fmt: skip
