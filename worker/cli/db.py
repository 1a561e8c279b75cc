"""`holdfast db`: bring the schema up to date, and tell whether it is."""

from __future__ import annotations

import typer

from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="Migrate the database, and check it.")


@app.command("upgrade")
def upgrade() -> None:
    """Bring the schema to this release's revision; safe to run from several places at once."""
    with services():
        from worker import db
        from worker.ledger import history

        with db.translated():
            db.upgrade()
        with db.statement() as conn:
            made = history.keep_up(conn)["made"]
        db.check_schema()
    print(f"the schema is up to date{f'; {len(made)} partitions made' if made else ''}")


@app.command("check")
def check() -> None:
    """Tell whether the schema fits this release: 0 it does, 1 it is to be migrated, 3 Postgres is away."""
    with services():
        from worker.db import check_schema

        check_schema()
    print("the schema is up to date")
