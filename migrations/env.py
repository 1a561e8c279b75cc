"""Run migrations one at a time in the fleet, giving up quickly rather than queueing behind a lock in production."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text

from models import Base
from worker.db import sqlalchemy_url
from worker.settings import settings

#: Any fixed number: it is the name of the lock under which one migration at a time runs.
_LOCK = 4_710_922_315
#: A migration that cannot get its table lock in this time would make every statement behind it wait: better to try again later.
_LOCK_TIMEOUT = "5s"
_STATEMENT_TIMEOUT = "10min"
#: All tables stay where the first ones are. A user called `holdfast` would else get its new ones into the schema of the SQL door,
#: which Postgres looks at first for being called like the user.
_STAY = """
SELECT set_config('search_path', quote_ident(coalesce(
    (SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = to_regclass('alembic_version')),
    current_schema())), false)
"""


def include_object(obj: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Leave the daily partitions of history out of the comparison: they come and go."""
    return not (kind == "table" and name is not None and name.startswith("job_history_"))


def run() -> None:
    """Apply the migrations over one connection, under the lock."""
    url = context.config.attributes.get("database_url") or settings().database_url
    engine = create_engine(sqlalchemy_url(url))
    with engine.connect() as connection:
        connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET statement_timeout = '{_STATEMENT_TIMEOUT}'"))
        connection.execute(text(_STAY))
        connection.commit()
        context.configure(
            connection=connection, target_metadata=Base.metadata, include_object=include_object,
            compare_type=True, compare_server_default=False, transaction_per_migration=False,
        )  # fmt: skip
        with context.begin_transaction():
            # Waiting for another migrator is not waiting for a table: it has no timeout. The lock ends with the transaction.
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            context.run_migrations()
    engine.dispose()


run()
