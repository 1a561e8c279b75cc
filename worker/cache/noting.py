"""What one session has changed, by transaction and savepoint: owed to the cache before the commit, carried out after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table, event
from sqlalchemy.orm import Session, SessionTransaction

from worker.cache import outbox
from worker.cache.outbox import Changes

#: Where a session keeps its notes.
_NOTES = "holdfast.cache"


class _Notes:
    """What one session has changed, by the transaction or savepoint in which it did."""

    def __init__(self) -> None:
        self.made: dict[SessionTransaction, Changes] = {}
        #: Rows of the outbox that the transaction has written, and on which connection.
        self.owed: list[tuple[Connection, int, Changes]] = []
        #: A table of the database that a session of several is to write the outbox of.
        self.table: Table | None = None
        self.flushing = False
        self.committing = False


def _notes(session: Session) -> _Notes:
    found: _Notes = session.info.setdefault(_NOTES, _Notes())
    return found


def touched(session: Session) -> Changes:
    """Return what the session's transaction has changed so far; a cached read of it would miss its own writes."""
    all_of_it = Changes()
    if (notes := session.info.get(_NOTES)) is not None:
        for changes in (*notes.made.values(), *(changes for *_, changes in notes.owed)):
            all_of_it.add(changes.keys, changes.tags)
    return all_of_it


def is_flushing(session: Session) -> bool:
    """Tell whether the session writes what its instances have become, of which it tells each."""
    return _notes(session).flushing


def invalidate_in(session: Session, keys: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
    """Make the cache forget keys and tags if and when the session's transaction commits: for those who write by raw SQL.

        session.execute(text("UPDATE books SET price = price * 2"))
        invalidate_in(session, tags=tags_of(Book))

    `keys` are full keys, as `Region.key` gives them. Raises `CacheKeyError` for what is none.

    **Guarantee:** as of a tracked change: committed is invalidated, also when this process dies; rolled back is not.
    """
    listen()
    if not session.in_transaction():
        session.begin()
    note(session, keys, tags)


def note(session: Session, keys: Iterable[str], tags: Iterable[str], table: Table | None = None) -> None:
    """Note keys and tags as changed in the session's present transaction or savepoint."""
    notes, within = _notes(session), session.get_nested_transaction() or session.get_transaction()
    assert within is not None
    notes.table = table if table is not None else notes.table
    notes.made.setdefault(within, Changes()).add(keys, tags)
    if notes.committing:  # by a listener of somebody else's, after ours has written the row
        _owe(session, notes)


def _owe(session: Session, notes: _Notes) -> None:
    root = session.get_transaction()
    if root is not None and (changes := notes.made.pop(root, None)):
        conn = session.connection(bind_arguments={} if notes.table is None else {"clause": notes.table})
        notes.owed.append((conn, outbox.owe(conn, changes), changes))


# ---- what SQLAlchemy tells


@cache
def listen() -> None:
    """Hear of the transactions of every session of this process."""
    for name, heard in (
        ("before_flush", _flushing), ("after_flush", _flushed), ("before_commit", _committing), ("after_commit", _committed),
        ("after_transaction_end", _ended),
    ):  # fmt: skip
        event.listen(Session, name, heard)


def _flushing(session: Session, *_: Any) -> None:
    _notes(session).flushing = True


def _flushed(session: Session, *_: Any) -> None:
    _notes(session).flushing = False


def _committing(session: Session) -> None:
    """Write what the whole transaction has changed into the outbox, as the last thing in it."""
    if session.in_nested_transaction():
        return
    session.flush()
    notes = _notes(session)
    _owe(session, notes)
    notes.committing = True


def _committed(session: Session) -> None:
    notes = session.info.get(_NOTES)
    if notes is None:
        return
    if (savepoint := session.get_nested_transaction()) is not None:
        if changes := notes.made.pop(savepoint, None):
            notes.made.setdefault(_around(savepoint), Changes()).add(changes.keys, changes.tags)
        return
    owed, notes.owed = notes.owed, []
    for conn, row, changes in owed:
        # A session on a connection whose caller has yet to commit is not committed: a relay sees the row when that is.
        if not conn.in_transaction():
            outbox.carry_out(changes, _striking(conn, row))


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    """Return the savepoint or transaction in which a savepoint was made."""
    around = savepoint.parent
    while around is not None and not around.nested and around.parent is not None:
        around = around.parent
    assert around is not None
    return around


def _striking(conn: Connection, row: int) -> Callable[[], None]:
    return lambda: outbox.strike(conn, row)


def _ended(session: Session, transaction: SessionTransaction) -> None:
    """Drop what was rolled back; what was committed has been taken out before."""
    notes = session.info.get(_NOTES)
    if notes is None:
        return
    notes.flushing = False
    notes.made.pop(transaction, None)
    if transaction.parent is None:
        del session.info[_NOTES]
