"""Having the servers a command needs: real ones as they are configured, or the embedded ones of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.cli.output import note

if TYPE_CHECKING:
    from worker.embedded import Stack


@contextmanager
def services() -> Iterator[Stack | None]:
    """Lend the embedded stack of this folder for the length of a command, migrated; nothing when real servers are configured.

    Real servers are never migrated from here: that is `holdfast db upgrade`. Raises `SettingsError`.
    """
    from worker.settings import read_settings

    conf = read_settings()
    if not conf.embedded:
        yield None
        return
    from worker.embedded import ensure

    with ensure(conf.home) as stack:
        _migrate()
        yield stack


def _migrate() -> None:
    from worker.db import check_schema, statement, upgrade
    from worker.errors import SchemaOutdated
    from worker.ledger import history

    try:
        check_schema()
    except SchemaOutdated:
        upgrade()
        with statement() as conn:
            history.keep_up(conn)


def check_servers() -> None:
    """Refuse servers that would break the promises, as a worker does. Raises `HoldfastError` with the fix in its message.

    A Redis that is away is waited for by whoever starts next, so it is only told.
    """
    from worker.db import check_schema
    from worker.errors import StoreUnavailable
    from worker.store.client import check_policy

    check_schema()
    try:
        check_policy()
    except StoreUnavailable as exc:
        note(f"{exc}; its policy could not be checked")
