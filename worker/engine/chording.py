"""Groups and chords told by rows: a chord's body is sent in the transaction that ends its last part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from celery import states
from celery.backends.base import _create_chord_error_with_cause
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, result_from_tuple

from worker.db import repeatable
from worker.engine.ending import Ending, current_ending, within
from worker.engine.kept import KeptResults
from worker.engine.run import Phase, current
from worker.errors import InvalidJob
from worker.ledger import chords
from worker.ledger.accept import SessionScope, current_scope
from worker.ledger.settle import Guard


class ChordRows(KeptResults):
    """A backend that counts chords in Postgres."""

    def _save_group(self, group_id: str, result: Any) -> Any:
        repeatable(lambda conn: chords.save_header(conn, group_id, _plain(result.as_tuple())))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        header = repeatable(lambda conn: chords.read_header(conn, group_id))
        return None if header is None else {"result": result_from_tuple(header, self.app)}

    def _delete_group(self, group_id: str) -> None:
        repeatable(lambda conn: chords.forget(conn, group_id))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Keep the shape of a header whose results are nested; a flat one is told by its parts."""
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(result, GroupResult) for result in header.results):
            self._in_scope(lambda conn: chords.save_header(conn, header.id, _plain(header.as_tuple())))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Keep the chord's size; should all its parts have returned already, send its body."""

        def keep(conn: psycopg.Connection[Any]) -> None:
            complete = chords.set_size(conn, group_id, chord_size)
            if complete is not None:
                self._send_body(complete)

        self._in_scope(keep)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Add a part to a chord that runs."""
        self._in_scope(lambda conn: chords.grow(conn, chord_id))

    def _in_scope(self, work: Any) -> None:
        """Do it in the transaction that jobs are accepted into here, or in one of its own."""
        ending, run, where = current_ending(), current(), current_scope()
        if ending is not None:
            work(ending.conn)
        elif run is not None and run.phase is Phase.SETTLING:
            work(run.connection())
        elif isinstance(where, SessionScope):
            conn = where.connection()
            with within(Ending(conn, "", Guard.waiting()), where):
                work(conn)
        else:
            self._alone(work)

    def _alone(self, work: Any) -> None:
        def transact(conn: psycopg.Connection[Any]) -> Ending:
            with conn.transaction():
                ending = Ending(conn, "", Guard.waiting())
                with within(ending, None):
                    work(conn)
            return ending

        self.tell_all(repeatable(transact))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a part that returned; the last one sends the body, in the same transaction."""
        if request.group and request.id:
            encoded = self.encode_result(result, state)
            self._in_scope(lambda conn: self._return_part(conn, request, state, encoded))

    def _return_part(self, conn: psycopg.Connection[Any], request: Any, state: str, encoded: Any) -> None:
        if not request.group:
            return
        part = chords.Part(request.id, state, self._json(encoded))
        complete = chords.return_part(conn, request.group, part, request.group_index, str(self.encode(request.chord)))
        if complete is None:
            return
        if current_ending() is not None:
            self._send_body(complete)
            return
        run = current()
        ending = Ending(conn, "", Guard.waiting())
        with within(ending, run):
            self._send_body(complete)
        if run is not None:
            run.after_commit(lambda: self.tell_all(ending))

    def _send_body(self, complete: chords.Complete) -> None:
        body = maybe_signature(complete.body, app=self.app)
        ending = current_ending()
        assert ending is not None
        try:
            body.delay(self._header_results(ending.conn, complete))
        except ChordError as exc:
            self.chord_error_from_stack(body, exc)
        except InvalidJob as exc:
            self.chord_error_from_stack(body, ChordError(f"the results cannot be sent to the body: {exc}"))

    def _header_results(self, conn: psycopg.Connection[Any], complete: chords.Complete) -> list[Any]:
        """Return the header's results in order; raises `ChordError` for the first part that did not succeed."""
        returned = {}
        for part in complete.parts:
            value = self._decoded(part.result)
            if part.status in states.PROPAGATE_STATES:
                exc = self.exception_to_python(value)
                raise _create_chord_error_with_cause(message=f"Dependency {part.task_id} raised {exc!r}", original_exc=exc)
            returned[part.task_id] = value
        if complete.header is None:
            return [returned[part.task_id] for part in complete.parts]
        return self._shaped(conn, result_from_tuple(complete.header, self.app), returned)

    def _shaped(self, conn: psycopg.Connection[Any], group: Any, returned: dict[str, Any]) -> list[Any]:
        missing = [leaf.id for leaf in _leaves(group) if leaf.id not in returned]
        if missing:
            returned |= {job_id: self._decoded(value) for job_id, value in chords.results_of(conn, missing).items()}

        def value(node: Any) -> Any:
            return [value(child) for child in node.results] if isinstance(node, GroupResult) else returned.get(node.id)

        return [value(child) for child in group.results]

    def _decoded(self, value: Any) -> Any:
        return self.decode(self.encode(value))


def _leaves(result: Any) -> Iterator[Any]:
    if isinstance(result, GroupResult):
        for child in result.results:
            yield from _leaves(child)
    else:
        yield result


def _plain(value: Any) -> Any:
    """Return tuples as lists, which is what JSON makes of them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
