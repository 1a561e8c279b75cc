"""The way into the console of servers that were just started: a link that logs in once."""

from __future__ import annotations

import getpass

from worker.cli.output import note

#: The operator that a link logs in. Nobody knows its password, unless somebody sets one by `holdfast operators password`.
NAME = "local"


def invite(console: str) -> None:
    """Say where the console is, with a link that logs its bearer in as an admin, once and within a quarter of an hour.

    For servers of this machine's own alone: whoever reads the terminal is in. An operator that was disabled, or given another
    role, is left as it is.
    """
    from worker.db import statement
    from worker.ledger import operators, trail

    with statement() as conn:
        who = operators.find(conn, NAME)
    if who is None:
        with trail.recording(f"{getpass.getuser()} (command line)", "operator.add", NAME, role="admin") as conn:
            operators.add(conn, NAME, "admin")
    elif who.disabled_at is not None:
        note(f"the console: {console}/ (the operator {NAME} is disabled; see `holdfast operators`)")
        return
    link = f"{console}/login/once?token={operators.make_link(NAME)}"
    note(f"the console, logging in once within {operators.LINK_S // 60} minutes: {link}")
