"""Postgres: one engine a process, sessions, raw connections for the ledger's own statements, and the schema's version."""

from __future__ import annotations

import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from hashlib import md5
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors as pg
from psycopg import generators
from psycopg.abc import Buffer
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from worker.errors import LedgerUnavailable, SchemaOutdated
from worker.settings import settings

# To import SQLAlchemy takes a quarter of a second, and most processes ask Postgres without it.
if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

T = TypeVar("T")

#: How Postgres knows this process's connections.
_name = "holdfast"

#: The ledger's statements all go by an index. Their plans are kept, though, and one made while `jobs` was empty, where reading
#: it whole costs nothing, would read a backlog whole for each claim until the table is next analysed. Behind a pooler, where a
#: session's settings are not ours to change, nothing is prepared and so no plan is kept.
_BY_INDEX = "SET enable_seqscan = off"
#: The same for what runs in sessions, whose own statements may well read whole tables: plan each time.
_PLAN_ANEW = "SET plan_cache_mode = force_custom_plan"

#: Errors that say the server is away or going away, not that the statement was wrong.
#: After a failover the old connections may live on with a server that only reads.
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, pg.ReadOnlySqlTransaction)
#: Operational errors that speak of one statement while the connection is well.
_NOT_AWAY = (
    pg.QueryCanceled, pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure, pg.ProgramLimitExceeded,
)  # fmt: skip


def sqlalchemy_url(database_url: str) -> str:
    """Return the URL with the psycopg driver named, as SQLAlchemy wants it."""
    scheme, sep, rest = database_url.partition("://")
    return f"postgresql+psycopg{sep}{rest}" if scheme in ("postgres", "postgresql") else database_url


def _connect_options() -> dict[str, Any]:
    conf = settings()
    return {
        "prepare_threshold": 5 if conf.db_prepared else None,
        "client_encoding": "utf8",
        "connect_timeout": max(1, round(conf.db_connect_s)),
        # A server that vanished without a word is noticed by TCP, not by a person.
        "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000,
    }  # fmt: skip


def _name_it(dialect: Any, record: Any, args: Any, options: dict[str, Any]) -> None:
    options["application_name"] = _name


def _plan_anew(conn: psycopg.Connection[Any], record: Any) -> None:
    conn.execute(_PLAN_ANEW)
    conn.commit()


def name_connections(name: str) -> None:
    """Let Postgres know by this name what this process, and the children it forks, connect from now on."""
    global _name
    _name = name
    for cached in (engine, _autocommit):
        if cached.cache_info().currsize:
            cached().dispose()


@lru_cache(maxsize=1)
def engine() -> Engine:
    """Return this process's engine for transactions."""
    from sqlalchemy import create_engine, event

    conf = settings()
    made = create_engine(
        sqlalchemy_url(conf.database_url),
        pool_size=conf.db_pool_size,
        max_overflow=conf.db_pool_size * 4,
        pool_use_lifo=True,
        # Pinged before use: after a restart of Postgres every process holds dead connections, and a job that met one in each of
        # three processes would look like poison.
        pool_pre_ping=True,
        connect_args=_connect_options(),
    )
    event.listen(made, "do_connect", _name_it)
    if conf.db_prepared:
        event.listen(made, "connect", _plan_anew)
    return made


class _Autocommit:
    """Connections in autocommit mode, lent without the bookkeeping of SQLAlchemy's pool, which costs as much as a statement."""

    def __init__(self) -> None:
        self._keeps = settings().db_pool_size
        self._lent = threading.BoundedSemaphore(self._keeps * 5)
        self._idle: list[psycopg.Connection[Any]] = []
        #: One for each that is lent.
        self._out: list[None] = []

    @contextmanager
    def lend(self, *, passing: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection; one that comes back broken or in a transaction is not kept.

        Nor is one that was made for somebody `passing`, unless it is the only one: what looks in every so often would leave each
        process of a pool with a second connection.
        """
        with self._lent:
            conn = self._pop_living()
            extra = passing and conn is None
            if conn is None:
                url = settings().database_url
                conn = psycopg.connect(url, autocommit=True, application_name=_name, **_connect_options())
                if settings().db_prepared:
                    conn.execute(_BY_INDEX)
            self._out.append(None)
            try:
                yield conn
            except _AWAY as exc:
                if is_away(exc):
                    conn.close()
                raise
            finally:
                self._out.pop()
                keeps = not self._out and not self._idle if extra else len(self._idle) < self._keeps
                if keeps and conn.pgconn.transaction_status == TransactionStatus.IDLE:
                    self._idle.append(conn)
                else:
                    conn.close()

    def _pop_living(self) -> psycopg.Connection[Any] | None:
        """Take an idle connection that has not been ended meanwhile; one that has something to read has been."""
        while True:
            try:
                conn = self._idle.pop()
            except IndexError:
                return None
            if not conn.closed:
                poll = select.poll()
                poll.register(conn.fileno(), select.POLLIN)
                if not poll.poll(0):
                    return conn
            conn.close()

    def dispose(self) -> None:
        """Close the connections that are not lent."""
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()


@lru_cache(maxsize=1)
def _autocommit() -> _Autocommit:
    return _Autocommit()


def _after_fork() -> None:
    if engine.cache_info().currsize:
        engine().dispose(close=False)
    _autocommit.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def session() -> Session:
    """Return a new session on this process's engine."""
    from sqlalchemy.orm import Session

    return Session(engine(), expire_on_commit=False)


def raw(session: Session) -> psycopg.Connection[Any]:
    """Return the psycopg connection on which the session's transaction runs, beginning one if need be."""
    driver: Any = session.connection().connection.driver_connection
    return driver  # type: ignore[no-any-return]


@contextmanager
def translated() -> Iterator[None]:
    """Turn a driver's word that Postgres is away, or not migrated, into ours."""
    try:
        yield
    except (pg.UndefinedTable, pg.UndefinedColumn) as exc:
        raise SchemaOutdated(f"the database is not migrated ({_first_line(exc)}): run `holdfast db upgrade`") from exc
    except Exception as exc:
        if isinstance(exc, LedgerUnavailable) or not is_away(exc):
            raise
        if engine.cache_info().currsize:  # After a failover its connections may be left behind with a server that only reads.
            engine().dispose()
        raise LedgerUnavailable(f"Postgres did not answer: {_first_line(exc)}") from exc


def is_away(exc: BaseException) -> bool:
    """Tell whether an error, of the driver, as SQLAlchemy wraps it or ours, says that Postgres is away or going away."""
    if isinstance(exc, LedgerUnavailable):
        return not isinstance(exc, SchemaOutdated)
    wrapping = sys.modules.get("sqlalchemy.exc")  # what is not imported has raised nothing
    origin = exc.orig if wrapping is not None and isinstance(exc, wrapping.DBAPIError) else exc
    return isinstance(origin, _AWAY) and not isinstance(origin, _NOT_AWAY)


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]


@contextmanager
def statement(*, passing: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """Lend a connection in autocommit mode, on which each statement is a transaction; `conn.transaction()` makes longer ones.

    Who is only `passing`, every so often and beside the process's work, adds none to those it keeps. Raises `LedgerUnavailable`
    when Postgres is away; the connection is then dropped, and with it the idle ones.
    """
    with translated():
        try:
            with _autocommit().lend(passing=passing) as conn:
                yield conn
        except _AWAY as exc:
            if is_away(exc):
                _autocommit().dispose()
            raise


#: Times work is repeated that met a deadlock; the others in the circle have gone on by then.
_DEADLOCKS = 5

#: A named parameter, as psycopg writes it.
_NAMED = re.compile(r"%\((\w+)\)s")
#: What each connection has prepared here, by name.
_prepared: WeakKeyDictionary[psycopg.Connection[Any], set[bytes]] = WeakKeyDictionary()


@cache
def _positional(sql: str) -> tuple[bytes, bytes, tuple[str, ...]]:
    """Return what a statement is called on the server, its text with `$1`, `$2` and so on, and the names of these."""
    names = tuple(dict.fromkeys(_NAMED.findall(sql)))
    text = _NAMED.sub(lambda found: f"${names.index(found[1]) + 1}", sql)
    return f"holdfast_{md5(text.encode(), usedforsecurity=False).hexdigest()}".encode(), text.encode(), names


def first_row(conn: psycopg.Connection[Any], sql: str, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Run a statement that every job runs and return its first row, as `conn.execute(sql, values).fetchone()` would.

    Alone on a connection of `statement` it is prepared at once and goes without a cursor, which takes half the time.
    """
    row: tuple[Any, ...] | None
    if not settings().db_prepared or conn.pgconn.transaction_status != TransactionStatus.IDLE or not conn.autocommit:
        row = conn.execute(sql, values).fetchone()
        return row
    name, text, names = _positional(sql)
    transformer = Transformer(conn)
    given = transformer.dump_sequence([values[name] for name in names], [PyFormat.TEXT] * len(names))
    try:
        result = _run_prepared(conn, name, text, given)
    except pg.InvalidSqlStatementName:  # psycopg has deallocated all, as it does after a rollback; nothing was done
        _prepared[conn].discard(name)
        result = _run_prepared(conn, name, text, given)
    transformer.set_pgresult(result, set_loaders=True)
    row = transformer.load_row(0, tuple) if result.ntuples else None
    return row


def _run_prepared(conn: psycopg.Connection[Any], name: bytes, text: bytes, given: Sequence[Buffer | None]) -> PGresult:
    known = _prepared.setdefault(conn, set())
    if name not in known:
        conn.pgconn.send_prepare(name, text)
        _outcome(conn)
        known.add(name)
    conn.pgconn.send_query_prepared(name, given)
    return _outcome(conn)


def _outcome(conn: psycopg.Connection[Any]) -> PGresult:
    result: PGresult
    (result,) = conn.wait(generators.execute(conn.pgconn))
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise pg.error_from_result(result)
    return result


def repeatable(work: Callable[[psycopg.Connection[Any]], T]) -> T:
    """Run work that is harmless to repeat, once more on a new connection if the first one turns out to be dead.

    So is work that another transaction waited for in a circle, of which Postgres undid all. Raises `LedgerUnavailable` when the
    second try fails too.
    """
    for _ in range(_DEADLOCKS):
        try:
            return _twice(work)
        except pg.DeadlockDetected:
            continue
    return _twice(work)


def _twice(work: Callable[[psycopg.Connection[Any]], T]) -> T:
    try:
        with statement() as conn:
            return work(conn)
    except SchemaOutdated:
        raise
    except LedgerUnavailable:
        with statement() as conn:
            return work(conn)


def alembic_config(database_url: str | None = None) -> Config:
    """Return the migrations' configuration, also when Holdfast is installed without its source tree."""
    from alembic.config import Config  # Alembic costs a tenth of a second; only what migrates pays it.

    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["database_url"] = database_url or settings().database_url
    return config


def upgrade(database_url: str | None = None) -> None:
    """Bring the schema to the newest revision; safe to run from several places at once."""
    from alembic import command

    command.upgrade(alembic_config(database_url), "head")


@cache
def newest_revision() -> str:
    """Return the revision that this release needs: the files of migrations begin with theirs, numbers with leading zeros."""
    names = (file.name for file in (files("migrations") / "versions").iterdir())
    return max(name.partition("_")[0] for name in names if name[0].isdigit())


def check_schema() -> None:
    """Raise `SchemaOutdated` unless the database has what this release needs.

    A newer schema does: each migration is safe for the release before it, whose processes must be able to restart meanwhile.
    """
    head = newest_revision()
    with statement() as conn:
        row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None or row[0] < head:
        found = row[0] if row else "none"
        raise SchemaOutdated(f"the database is at revision {found}, this release needs {head}: run `holdfast db upgrade`")
