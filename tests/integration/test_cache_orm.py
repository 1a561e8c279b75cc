"""SQLAlchemy and the cache: read without SQL, forgotten after the commit and only then, never blind to one's own writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    Engine,
    ForeignKey,
    LargeBinary,
    Numeric,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy import DateTime as Moment
from sqlalchemy.dialects.postgresql import INET
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, deferred, mapped_column, relationship, sessionmaker

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import app
from worker.cache.orm import cached_get, cached_query, invalidate_in, tags_of, track
from worker.db import engine, session
from worker.engine.relay import Relay
from worker.errors import CacheConfigError, CacheKeyError

Conn = psycopg.Connection[Any]


class Base(DeclarativeBase):
    pass


writings = Table(
    "writings", Base.metadata,
    Column("book_id", ForeignKey("books.id", ondelete="CASCADE"), primary_key=True),
    Column("author_id", ForeignKey("authors.id"), primary_key=True),
)  # fmt: skip
track(writings)


@track
class Book(Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    price: Mapped[int] = mapped_column(server_default="1")
    blurb: Mapped[str | None] = deferred(mapped_column(Text))
    authors: Mapped[list[Author]] = relationship(secondary=writings)


@track
class Author(Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@track
class Copy(Base):
    __tablename__ = "copies"

    shelf: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id", ondelete="CASCADE"))


@track
class Animal(Base):
    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


@track
class Dog(Animal):
    __tablename__ = "dogs"

    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    tricks: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@track
class Everything(Base):
    __tablename__ = "everything"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    at: Mapped[datetime] = mapped_column(Moment(timezone=True))
    day: Mapped[date]
    spell: Mapped[timedelta]
    colour: Mapped[Colour]
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    plain: Mapped[Any] = mapped_column(JSON)
    names: Mapped[list[str]] = mapped_column(ARRAY(Text))
    ratio: Mapped[float]
    none: Mapped[str | None]


@track
class Shelf(Base):
    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    labels: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON))


class Secret(Base):
    """Not tracked."""

    __tablename__ = "secrets"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    """A machine that is too busy for the deadline of the cache is no outage here."""
    conf(cache_timeout_ms=2000)


@pytest.fixture
def sql(env: dict[str, str]) -> Iterator[list[str]]:
    """The library's tables with one book and its author, and the statements that sessions send from now on."""
    Base.metadata.create_all(engine())
    with session() as writing:
        writing.add(Book(id=1, title="Emma", authors=[Author(id=1, name="Austen")], blurb="long"))
        writing.commit()
    sent: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


def title(pk: int = 1) -> str | None:
    """Read a book's title as any other process would."""
    with session() as reading:
        book = cached_get(reading, Book, pk, ttl=60)
        return book.title if book else None


def titles() -> list[str]:
    with session() as reading:
        return [book.title for book in cached_query(reading, select(Book).order_by(Book.id), key="all", ttl=60)]


def rename(to: str) -> None:
    with session() as writing:
        writing.get_one(Book, 1).title = to
        writing.commit()


# ---- reading


def test_row_is_read_without_sql_on_a_hit(sql: list[str]) -> None:
    assert title() == "Emma"
    loads = len(sql)
    assert loads == 1, "a load is one statement"
    with session() as reading:
        book = cached_get(reading, Book, 1, ttl=60)
        assert book is not None
        assert (book.id, book.title, book.price) == (1, "Emma", 1)
        assert book in reading
        assert cached_get(reading, Book, 1, ttl=60) is book
        assert len(sql) == loads
        assert (book.blurb, book.authors[0].name) == ("long", "Austen"), "what is not cached loads as ever"


def test_instance_from_the_cache_is_written_like_any_other(sql: list[str]) -> None:
    title()
    with session() as writing:
        book = cached_get(writing, Book, 1, ttl=60)
        assert book is not None
        book.price = 7
        writing.commit()
    with session() as reading:
        assert reading.get_one(Book, 1).price == 7
    with session() as reading:
        again = cached_get(reading, Book, 1, ttl=60)
        assert again is not None
        assert (again.price, again.title) == (7, "Emma")


def test_value_that_tracks_its_own_changes_does_so_when_it_comes_from_the_cache(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Shelf(id=1, labels={"a": 1}))
        writing.commit()
    for number, label in ((2, "as loaded"), (3, "as filled in after it has expired")):
        with Session(engine()) as writing:
            shelf = cached_get(writing, Shelf, 1, ttl=60)
            assert shelf is not None
            if number == 3:
                writing.commit()
                cached_get(writing, Shelf, 1, ttl=60)
            shelf.labels[label] = number
            writing.commit()
        with session() as reading:
            assert cached_get(reading, Shelf, 1, ttl=60).labels[label] == number  # type: ignore[union-attr]


def test_row_that_is_not_there_is_remembered_until_it_is_inserted(sql: list[str]) -> None:
    assert title(2) is None
    before = len(sql)
    assert title(2) is None
    assert len(sql) == before
    with session() as writing:
        writing.add(Book(id=2, title="Persuasion"))
        writing.commit()
    assert title(2) == "Persuasion"


def test_instance_that_the_session_has_stays_as_it_is_and_an_expired_one_is_filled_in(sql: list[str]) -> None:
    with Session(engine()) as reading:
        book = reading.get_one(Book, 1)
        reading.commit()  # expires it
        title()
        before = len(sql)
        assert cached_get(reading, Book, 1, ttl=60) is book
        assert book.title == "Emma"
        assert len(sql) == before, "an expired instance was loaded by SQL although the cache had it"
        book.title = "mine"
        with reading.no_autoflush:
            assert cached_get(reading, Book, 1, ttl=60) is book
        assert book.title == "mine"


def test_every_type_comes_back_as_it_was(sql: list[str]) -> None:
    values = {
        "id": uuid4(), "amount": Decimal("12.30"), "at": datetime(2030, 1, 2, 3, 4, 5, 6, UTC), "day": date(2030, 1, 2),
        "spell": timedelta(hours=1, microseconds=3), "colour": Colour.BLUE, "raw": b"\x00\xff", "plain": {"a": [1, None, "ü"]},
        "names": ["x", "y"], "ratio": 0.1, "none": None,
    }  # fmt: skip
    with session() as writing:
        writing.add(Everything(**values))
        writing.commit()
    for _ in range(2):
        with session() as reading:
            found = cached_get(reading, Everything, values["id"], ttl=60)
            assert {name: getattr(found, name) for name in values} == values
            assert {name: type(getattr(found, name)) for name in values} == {name: type(v) for name, v in values.items()}


def test_composite_key_is_a_tuple(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Copy(shelf="a:b", place=3, book_id=1))
        writing.commit()
    with session() as reading:
        found = cached_get(reading, Copy, ("a:b", 3), ttl=60)
        assert found is not None
        assert found.book_id == 1


def test_class_of_a_hierarchy_is_read_as_what_it_is_and_forgotten_as_any_of_them(sql: list[str]) -> None:
    with session() as writing:
        writing.add_all([Dog(id=1, tricks=3), Animal(id=2)])
        writing.commit()
    for _ in range(2):
        with session() as reading:
            dog = cached_get(reading, Animal, 1, ttl=60)
            assert isinstance(dog, Dog)
            assert dog.tricks == 3
            assert cached_get(reading, Dog, 2, ttl=60) is None
            assert cached_query(reading, select(Animal).where(Animal.id == 1), key="dog", ttl=60)[0].tricks == 3
    with session() as writing:
        writing.get_one(Dog, 1).tricks = 4
        writing.commit()
    with session() as reading:
        assert cached_query(reading, select(Animal).where(Animal.id == 1), key="dog", ttl=60)[0].tricks == 4
    with session() as reading:
        assert cached_get(reading, Animal, 1, ttl=60).tricks == 4  # type: ignore[union-attr]


def test_query_is_read_without_sql_on_a_hit(sql: list[str]) -> None:
    assert titles() == ["Emma"]
    before = len(sql)
    assert titles() == ["Emma"]
    assert len(sql) == before


def test_query_of_columns_gives_named_tuples(sql: list[str]) -> None:
    statement = select(Book.title, func.count().label("n"), Book.price * 2).group_by(Book.id)
    for _ in range(2):
        with session() as reading:
            (row,) = cached_query(reading, statement, key=("counts", 1), ttl=60)
            assert (row.title, row.n, row[2]) == ("Emma", 1, 2)
            assert tuple(row) == ("Emma", 1, 2)


# ---- forgetting


def by_flush(writing: Session) -> None:
    writing.get_one(Book, 1).title = "new"


def by_orm_update(writing: Session) -> None:
    writing.execute(update(Book).where(Book.id == 1).values(title="new"))


def by_core(writing: Session) -> None:
    writing.connection().execute(update(Book.__table__).values(title="new"))


def by_legacy_bulk(writing: Session) -> None:
    writing.bulk_update_mappings(Book, [{"id": 1, "title": "new"}])


def by_upsert(writing: Session) -> None:
    from sqlalchemy.dialects.postgresql import insert as upsert

    writing.execute(upsert(Book).values(id=1, title="new").on_conflict_do_update(index_elements=["id"], set_={"title": "new"}))


def by_raw_sql(writing: Session) -> None:
    writing.execute(text("UPDATE books SET title = 'new'"))
    invalidate_in(writing, tags=tags_of(Book))


def by_late_listener(writing: Session) -> None:
    @event.listens_for(writing, "before_commit")
    def late(of: Session) -> None:
        of.execute(update(Book).values(title="new"))

    writing.connection()


WAYS = [by_flush, by_orm_update, by_core, by_legacy_bulk, by_upsert, by_raw_sql, by_late_listener]


@pytest.mark.parametrize("way", WAYS)
def test_change_is_seen_after_its_commit_and_not_before(sql: list[str], db: Conn, way: Callable[[Session], None]) -> None:
    assert (title(), titles()) == ("Emma", ["Emma"])
    with session() as writing:
        way(writing)
        assert (title(), titles()) == ("Emma", ["Emma"])
        writing.commit()
        assert (title(), titles()) == ("new", ["new"])
    assert db.execute("SELECT count(*) FROM cache_outbox").fetchone() == (0,)


@pytest.mark.parametrize("way", WAYS)
def test_change_that_is_rolled_back_makes_nothing_forgotten(sql: list[str], db: Conn, way: Callable[[Session], None]) -> None:
    assert (title(), titles()) == ("Emma", ["Emma"])
    before = len(sql)
    with session() as writing:
        way(writing)
        writing.flush()
        writing.rollback()
        wrote = len(sql) - before
        writing.commit() if way is not by_late_listener else None
    assert (title(), titles()) == ("Emma", ["Emma"])
    assert len(sql) == before + wrote, "something was loaded again"
    assert db.execute("SELECT count(*) FROM cache_outbox").fetchone() == (0,)


def test_transaction_that_changes_nothing_tracked_writes_no_outbox(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Secret(id=1))
        writing.get_one(Book, 1).title = "Emma"
        writing.commit()
    assert not [statement for statement in sql if "cache_outbox" in statement]


def test_deleted_row_is_gone(sql: list[str]) -> None:
    assert (title(), titles()) == ("Emma", ["Emma"])
    with session() as writing:
        writing.delete(writing.get_one(Book, 1))
        writing.commit()
    assert (title(), titles()) == (None, [])


def test_savepoint_that_is_rolled_back_makes_nothing_forgotten_and_one_that_is_kept_does(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Book(id=2, title="Persuasion"))
        writing.commit()
    assert (title(1), title(2)) == ("Emma", "Persuasion")
    with session() as writing:
        kept = writing.begin_nested()
        by_flush(writing)
        with writing.begin_nested() as lost:
            writing.get_one(Book, 2).title = "lost"
            writing.flush()
            lost.rollback()
        kept.commit()
        writing.commit()
    before = len(sql)
    assert title(2) == "Persuasion"
    assert len(sql) == before, "what the lost savepoint changed was forgotten"
    assert title(1) == "new"


def test_change_of_one_row_leaves_the_others_cached(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Book(id=2, title="Persuasion"))
        writing.commit()
    assert (title(1), title(2)) == ("Emma", "Persuasion")
    rename("new")
    before = len(sql)
    assert title(2) == "Persuasion"
    assert len(sql) == before


def test_row_whose_key_changes_is_forgotten_under_both(sql: list[str]) -> None:
    assert (title(1), title(9)) == ("Emma", None)
    with session() as writing:
        writing.execute(delete(writings))
        writing.commit()
    assert (title(1), title(9)) == ("Emma", None)
    with session() as writing:
        writing.get_one(Book, 1).id = 9
        writing.commit()
    assert (title(1), title(9)) == (None, "Emma")


def test_query_along_a_relation_sees_its_association_change(sql: list[str]) -> None:
    statement = select(Author.name).join(Book.authors).where(Book.id == 1).order_by(Author.name)

    def names() -> list[str]:
        with session() as reading:
            return [row.name for row in cached_query(reading, statement, key="authors-1", ttl=60)]

    assert names() == ["Austen"]
    with session() as writing:
        book = writing.get_one(Book, 1)
        book.authors.append(Author(id=2, name="Another"))
        writing.commit()
    assert names() == ["Another", "Austen"]
    with session() as writing:
        book = writing.get_one(Book, 1)
        book.authors.pop(0)
        writing.commit()
    assert len(names()) == 1
    with session() as writing:
        writing.execute(insert(writings).values(book_id=1, author_id=1))
        writing.execute(delete(writings).where(writings.c.author_id == 2))
        writing.commit()
    assert names() == ["Austen"]


def test_rows_that_a_deletion_takes_along_are_forgotten(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Copy(shelf="a", place=1, book_id=1))
        writing.commit()
    with session() as reading:
        assert cached_get(reading, Copy, ("a", 1), ttl=60)
    with session() as writing:
        writing.execute(delete(Book))
        writing.commit()
    with session() as reading:
        assert cached_get(reading, Copy, ("a", 1), ttl=60) is None


def test_any_session_of_the_process_is_tracked(sql: list[str]) -> None:
    made = sessionmaker(engine())
    assert title() == "Emma"
    with made.begin() as writing:
        by_flush(writing)
    assert title() == "new"


def test_session_of_a_job_makes_forgotten_what_it_commits(sql: list[str], bench: Bench, db: Conn) -> None:
    @app.task(bind=True, name="test.rename")
    def rename_in_job(self: Any, why: str) -> None:
        by_flush(self.session)
        self.session.flush()
        if why == "fail":
            raise ValueError(why)

    assert title() == "Emma"
    for why, seen in (("fail", "Emma"), ("succeed", "new")):
        rename_in_job.delay(why)
        bench.work()
        assert title() == seen
    assert db.execute("SELECT count(*) FROM cache_outbox").fetchone() == (0,)


def test_session_on_a_connection_whose_transaction_goes_on_is_left_to_the_relay(
    sql: list[str], relay: Relay, db: Conn
) -> None:
    assert title() == "Emma"
    with engine().connect() as conn, conn.begin() as outer:
        with Session(conn, join_transaction_mode="create_savepoint") as writing:
            by_flush(writing)
            writing.commit()
        before = len(sql)
        assert title() == "Emma"
        assert len(sql) == before, "it was forgotten before the change was committed"
        outer.commit()

    def carried_out() -> bool:
        relay.invalidate()
        return title() == "new"

    assert eventually(carried_out, 2)
    assert db.execute("SELECT count(*) FROM cache_outbox").fetchone() == (0,)


# ---- one's own writes, and old snapshots


@pytest.mark.parametrize("way", WAYS[:-1])
def test_own_writes_are_read_before_the_commit_and_not_given_to_others(sql: list[str], way: Callable[[Session], None]) -> None:
    assert (title(), titles()) == ("Emma", ["Emma"])
    with session() as writing:
        way(writing)
        writing.flush()
        writing.expire_all()
        assert cached_get(writing, Book, 1, ttl=60).title == "new"  # type: ignore[union-attr]
        assert [b.title for b in cached_query(writing, select(Book), key="all", ttl=60)] == ["new"]
        assert (title(), titles()) == ("Emma", ["Emma"])
        writing.rollback()
        assert cached_get(writing, Book, 1, ttl=60).title == "Emma"  # type: ignore[union-attr]
    assert (title(), titles()) == ("Emma", ["Emma"])


def test_query_sees_what_its_session_has_not_flushed_yet(sql: list[str]) -> None:
    assert titles() == ["Emma"]
    with session() as writing:
        writing.add(Book(id=2, title="Persuasion"))
        assert len(cached_query(writing, select(Book), key="all", ttl=60)) == 2
    assert titles() == ["Emma"]


def test_old_snapshot_does_not_bring_an_old_row_back(sql: list[str]) -> None:
    with session() as old:
        old.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert old.scalar(select(Book.title)) == "Emma"  # its snapshot is from here
        rename("new")
        assert old.scalar(select(Book.title)) == "Emma"
        assert cached_get(old, Book, 1, ttl=60).title == "new"  # type: ignore[union-attr]
    assert title() == "new"


def test_no_reader_sees_an_older_row_than_one_whose_commit_has_returned(sql: list[str]) -> None:
    committed, stop = [0], threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            floor = committed[0]
            with session() as reading:
                book = cached_get(reading, Book, 1, ttl=60)
                (row,) = cached_query(reading, select(Book.price), key="price", ttl=60)
            if book is None or book.price < floor or row.price < floor:
                wrong.append((floor, book and book.price, row.price))

    rename("raced")
    with session() as writing:
        writing.get_one(Book, 1).price = 0
        writing.commit()
    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for price in range(1, 151):
        with session() as writing:
            if price % 2:
                writing.get_one(Book, 1).price = price
            else:
                writing.execute(update(Book).values(price=price))
            writing.commit()
        committed[0] = price
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


# ---- what is refused


@pytest.mark.parametrize("ttl", [0, -1, None, float("nan"), True, "60"])
def test_ttl_that_is_none_is_refused(sql: list[str], ttl: Any) -> None:
    with session() as reading, pytest.raises(CacheConfigError, match="ttl"):
        cached_get(reading, Book, 1, ttl=ttl)


def test_untracked_model_or_table_is_refused(sql: list[str]) -> None:
    with session() as reading:
        with pytest.raises(CacheConfigError, match="'secrets' is not tracked"):
            cached_get(reading, Secret, 1, ttl=60)
        with pytest.raises(CacheConfigError, match="'secrets' is not tracked"):
            cached_query(reading, select(Book).where(Book.id.in_(select(Secret.id))), key="k", ttl=60)
        with pytest.raises(CacheConfigError, match="'secrets' is not tracked"):
            tags_of(Secret)


@pytest.mark.parametrize("pk", ["1", True, None, 1.0, (1, 2)])
def test_primary_key_of_another_type_is_refused(sql: list[str], pk: Any) -> None:
    with session() as reading, pytest.raises(CacheKeyError, match=r"primary key .* of Book: give \(id: int\)"):
        cached_get(reading, Book, pk, ttl=60)


def test_statement_that_cannot_be_cached_is_refused(sql: list[str]) -> None:
    with session() as reading:
        wrong = ((text("SELECT 1"), "takes a select"), (select(Book, Author.id), "a mix"), (update(Book), "takes a select"))
        for statement, why in wrong:
            with pytest.raises(CacheConfigError, match=why):
                cached_query(reading, statement, key="k", ttl=60)


def test_column_that_cannot_come_back_is_named_when_the_model_is_tracked() -> None:
    class Host(Base):
        __tablename__ = "hosts"

        id: Mapped[int] = mapped_column(primary_key=True)
        address: Mapped[Any] = mapped_column(INET)

    with pytest.raises(CacheConfigError, match=r"column Host\.address"):
        track(Host)
    Base.metadata.remove(Host.__table__)


def test_only_models_and_tables_are_tracked() -> None:
    with pytest.raises(CacheConfigError, match="neither a mapped class nor a table"):
        track(int)


# ---- sessions of other kinds


def test_row_that_is_only_added_is_found_and_its_absence_is_not_cached(sql: list[str]) -> None:
    with session() as writing:
        writing.add(Book(id=2, title="Persuasion"))
        book = cached_get(writing, Book, 2, ttl=60)
        assert book is not None
        assert book.title == "Persuasion"
        writing.commit()
    assert title(2) == "Persuasion"


def test_lone_text_for_tags_is_refused(sql: list[str]) -> None:
    with session() as reading, pytest.raises(CacheKeyError, match="tags='prices' is a str"):
        cached_query(reading, select(Book), key="all", ttl=60, tags="prices")


@pytest.fixture
def tenant(sql: list[str]) -> Iterator[dict[str, Any]]:
    """The option by which a session reads the same tables of a schema of its own, where the book has another title."""
    options = {"schema_translate_map": {None: "tenant"}}
    theirs = engine().execution_options(**options)
    with engine().begin() as conn:
        conn.execute(text("CREATE SCHEMA tenant"))
    Base.metadata.create_all(theirs)
    with theirs.begin() as conn:
        conn.execute(insert(Book).values(id=1, title="Secret"))
    yield options
    with engine().begin() as conn:
        conn.execute(text("DROP SCHEMA tenant CASCADE"))


@pytest.mark.parametrize("by", ["engine", "connection", "transaction", "session"])
def test_session_that_renames_schemas_reads_and_leaves_nothing_of_others(by: str, tenant: dict[str, Any]) -> None:
    def both(reading: Session) -> tuple[str, str]:
        reading.expunge_all()
        book = cached_get(reading, Book, 1, ttl=60)
        assert book is not None
        return book.title, cached_query(reading, select(Book.title), key="titles", ttl=60)[0].title

    def theirs() -> tuple[str, str]:
        with engine().connect() as conn:
            bind = {"engine": engine().execution_options(**tenant), "connection": conn}.get(by, engine())
            if by == "connection":
                conn.execution_options(**tenant)
            with Session(bind, execution_options=tenant if by == "session" else None) as reading:
                if by == "transaction":
                    reading.connection(execution_options=tenant)
                return both(reading)

    assert theirs() == ("Secret", "Secret")
    with session() as reading:
        assert both(reading) == ("Emma", "Emma"), "it left its rows to all"
    assert theirs() == ("Secret", "Secret")


def test_statement_that_renames_schemas_is_read_by_the_session(tenant: dict[str, Any]) -> None:
    with session() as reading:
        for statement, expected in ((select(Book.title), "Emma"), (select(Book.title).execution_options(**tenant), "Secret")):
            assert cached_query(reading, statement, key="titles", ttl=60)[0].title == expected


def test_session_on_another_database_has_rows_of_its_own(sql: list[str]) -> None:
    assert title() == "Emma"
    elsewhere = create_engine(engine().url.set(database="postgres"))
    try:
        with Session(elsewhere) as reading, pytest.raises(ProgrammingError, match="books"):
            cached_get(reading, Book, 1, ttl=60)
    finally:
        elsewhere.dispose()


def test_callers_that_hold_all_connections_of_their_pool_do_not_wait_for_one_more(sql: list[str]) -> None:
    small = create_engine(engine().url, pool_size=1, max_overflow=0, pool_timeout=20)
    try:
        with Session(small) as holding:
            holding.execute(text("SELECT 1"))
            began = time.monotonic()
            book = cached_get(holding, Book, 1, ttl=60)
            assert book is not None
            assert book.title == "Emma"
            assert time.monotonic() - began < 15
    finally:
        small.dispose()
