"""`holdfast operators`: who may use the console."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer

from worker.cli import options
from worker.cli.output import emit, note, table
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="Say who may use the console.")

_COLUMNS = {"name": "name", "role": "role", "status": "status", "created_at": "created (UTC)", "changed_at": "password set (UTC)"}

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator.")]
_Stdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin.")]
_ROLES = "viewer, operator or admin"


@app.command("add")
def add(
    name: _Name,
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help=f"What it may do: {_ROLES}.")] = "viewer",
    password_stdin: _Stdin = False,
) -> None:
    """Add an operator; without --password-stdin a password is made up and printed on stdout, once."""
    given = _given(password_stdin)
    with services():
        from worker.ledger import operators, trail

        with trail.recording(_who(), "operator.add", name, role=role) as conn:
            password = operators.add(conn, name, role, given)
    _tell(name, None if given else password)


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the operators."""
    with services():
        import msgspec

        from worker.db import statement
        from worker.ledger import operators

        with statement() as conn:
            rows = [msgspec.structs.asdict(one) for one in operators.listed(conn)]
    if as_json:
        emit(rows)
    else:
        table([{**row, "status": "disabled" if row["disabled_at"] else ""} for row in rows], _COLUMNS)


@app.command("rm")
def rm(name: _Name) -> None:
    """Remove an operator, whose sessions end with its next request."""
    with services():
        from worker.ledger import operators, trail

        with trail.recording(_who(), "operator.remove", name) as conn:
            operators.remove(conn, name)
    print(f"removed: {name}")


@app.command("role")
def role(name: _Name, role: Annotated[str, typer.Argument(metavar="ROLE", help=f"What it may do: {_ROLES}.")]) -> None:
    """Give an operator another role, from its next request on."""
    with services():
        from worker.ledger import operators, trail

        with trail.recording(_who(), "operator.role", name, role=role) as conn:
            operators.set_role(conn, name, role)
    print(f"{name} is {role}")


@app.command("password")
def password(name: _Name, password_stdin: _Stdin = False) -> None:
    """Give an operator another password and end its sessions; without --password-stdin one is made up and printed, once."""
    given = _given(password_stdin)
    with services():
        from worker.ledger import operators, trail

        with trail.recording(_who(), "operator.password", name) as conn:
            made = operators.set_password(conn, name, given)
    _tell(name, None if given else made)


def _given(from_stdin: bool) -> str | None:
    return sys.stdin.readline().rstrip("\r\n") if from_stdin else None


def _who() -> str:
    return f"{getpass.getuser()} (command line)"


def _tell(name: str, made: str | None) -> None:
    if made is None:
        print(f"password set: {name}")
        return
    note(f"the password of {name}; it is shown this once")
    print(made)
