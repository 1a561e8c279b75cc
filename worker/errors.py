"""The exceptions of Holdfast, as one tree.

    HoldfastError
    ├── SettingsError            a setting is missing or wrong
    ├── LedgerUnavailable        Postgres did not answer
    │   └── SchemaOutdated       the database is not migrated
    ├── StoreUnavailable         Redis did not answer
    │   └── StoreRefused         Redis refused a command
    │       └── StoreFull        for want of memory
    ├── InvalidJob (ValueError)  a job cannot be accepted as given
    │   ├── MessageTooLarge      its arguments are over the limit
    │   ├── UnknownQueue         no such queue is configured
    │   ├── UnknownTask          no such task is registered
    │   ├── InvalidArguments     the task takes other arguments
    │   └── InvalidRequest       `http.call` or `llm.chat` cannot make such a call
    ├── InvalidSchedule (ValueError)
    │   └── ScheduleNotFound     no schedule has this name
    ├── AlreadyImported (ValueError)  the jobs of this file are known
    ├── IdempotencyConflict      the key was used with another payload
    ├── KeyInFlight              the key is held by a transaction that is still open
    ├── ClaimLost                the attempt is no longer the job's owner
    ├── NotInJob                 called outside a running durable job
    ├── AddressRefused           `http.call` may not reach this address
    ├── HttpError                an HTTP call did not bring what was expected
    │   ├── HttpStatusError      the server answered with another status
    │   ├── HttpRedirectError    the server redirects to where no call can go
    │   └── HttpUnreachable      no sound answer came
    │       └── HttpTimeout      no whole answer came in time
    ├── CacheError               a cached value cannot be given
    │   ├── CacheConfigError (ValueError)  a region or loader is declared wrongly
    │   ├── CacheKeyError (ValueError)     a key or tag cannot be used
    │   ├── CacheValueError (ValueError)   a value cannot be cached
    │   └── LoadFailed           another caller's load failed a moment ago
    ├── LimitError               a limit or budget says no, or cannot say
    │   ├── InvalidLimit (ValueError)  a rate, key, cost or budget cannot be understood
    │   │   ├── CostTooHigh      the cost is above what is ever admitted at once
    │   │   └── Unpriced         there is a money budget, and the call has no price
    │   ├── LimitExceeded        a limit refused
    │   ├── BudgetNotRebuilt     the counters were lost and do not stand for the spend yet
    │   └── LimitNotFound        no policy has this name
    ├── LockError                a lock cannot be had or was lost
    │   ├── InvalidLock (ValueError)  a name, a life or an option of a lock cannot be used
    │   ├── LockBusy             another holds it
    │   ├── LockReentered        the same thread holds it already
    │   └── LockLost             another may have held it before its holder was done
    ├── StreamError              a stream cannot be used as asked
    │   ├── InvalidStream (ValueError)  a name or a range cannot be used
    │   ├── InvalidEntry (ValueError)   an entry or its id cannot be used
    │   ├── ConsumerBusy         entries are pending with the consumer
    │   ├── DeadLetterNotFound   no dead letter has this id
    │   └── StreamGone           the group was lost with its stream
    ├── InvalidPosition (ValueError)  no reader of events can stand there
    ├── LiveError                a flag, session, presence or leaderboard cannot be used so
    │   ├── InvalidLive (ValueError)  a name, a life or a value of one cannot be used
    │   ├── FlagNotFound         no flag has this name
    │   ├── SessionConflict      the session was written by somebody else meanwhile
    │   └── SessionGone          the session was ended, or its time is over
    ├── InvalidCaller (ValueError)  a caller cannot be added or changed as given
    ├── CallerNotFound           no caller has this name
    ├── InvalidOperator (ValueError)  an operator cannot be added or changed as given
    ├── OperatorNotFound         no operator has this name
    ├── GatewayError             the gateway refused a request of its client
    │   └── GatewayUnreachable   no answer came from it
    └── JobNotFound              no job, living or past, has this id

The docstring of a class is its default message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class HoldfastError(Exception):
    """Holdfast failed."""

    def __init__(self, message: str | None = None, **data: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.__dict__.update(data)


class SettingsError(HoldfastError):
    """A setting is missing or wrong."""


class LedgerUnavailable(HoldfastError):
    """Postgres did not answer; nothing was accepted."""


class SchemaOutdated(LedgerUnavailable):
    """The database is not migrated: run `holdfast db upgrade`."""


class StoreUnavailable(HoldfastError):
    """Redis did not answer."""


class StoreRefused(StoreUnavailable):
    """Redis refused a command."""


class StoreFull(StoreRefused):
    """Redis is at its maxmemory and refuses writes."""


class InvalidJob(HoldfastError, ValueError):
    """The job cannot be accepted as given."""

    #: What is wrong, in the word that every door tells, and with what: `kwargs.url`, `args.0`, `queue`.
    code: str = "invalid_job"
    field: str = ""


class MessageTooLarge(InvalidJob):
    """The arguments of the job are too large."""

    code, field = "too_large", "args"


class UnknownQueue(InvalidJob):
    """No such queue is configured."""

    code, field = "unknown_queue", "queue"


class UnknownTask(InvalidJob):
    """No such task is registered."""

    code, field = "unknown_task", "task"


class InvalidArguments(InvalidJob):
    """The task cannot be called with these arguments."""

    code, field = "invalid_arguments", "args"


class InvalidRequest(InvalidJob):
    """The call cannot be made as given."""


class InvalidSchedule(HoldfastError, ValueError):
    """The schedule cannot be understood."""


class ScheduleNotFound(InvalidSchedule):
    """No schedule has this name."""


class AlreadyImported(HoldfastError, ValueError):
    """The file was imported before, in part or in whole; --resume accepts what is left of it."""


class IdempotencyConflict(HoldfastError):
    """This idempotency key was used before with another payload."""

    code: str = "idempotency_conflict"
    field: str = "idempotency_key"


class KeyInFlight(HoldfastError):
    """A transaction that has not ended yet accepts a job with the same key; try again in a moment."""

    code: str = "idempotency_in_flight"
    field: str = "idempotency_key"


class ClaimLost(HoldfastError):
    """This attempt no longer owns its job; what it did was rolled back."""


class NotInJob(HoldfastError):
    """This is available only inside a running durable job."""


class AddressRefused(HoldfastError):
    """The address is private, loopback or link-local and may not be called."""


class HttpError(HoldfastError):
    """The HTTP call did not bring what was expected."""


class HttpStatusError(HttpError):
    """The server answered with a status that was not expected."""

    status: int = 0
    #: Seconds the server asked to wait before the next try.
    retry_after_s: float | None = None


class HttpRedirectError(HttpError):
    """The server redirects to where no call can go."""


class HttpUnreachable(HttpError):
    """No sound answer came: the connection, TLS or HTTP broke."""


class HttpTimeout(HttpUnreachable):
    """No whole answer came in time."""


class JobNotFound(HoldfastError):
    """No job, living or past, has this id."""


class InvalidCaller(HoldfastError, ValueError):
    """The caller cannot be added or changed as given."""


class CallerNotFound(HoldfastError):
    """No caller has this name."""


class InvalidOperator(HoldfastError, ValueError):
    """The operator cannot be added or changed as given."""


class OperatorNotFound(HoldfastError):
    """No operator has this name."""


class GatewayError(HoldfastError):
    """The gateway refused the request."""

    #: The status of the answer, 0 without one, its code, and the part of the request that is wrong, if one is.
    status: int = 0
    code: str = ""
    field: str = ""


class GatewayUnreachable(GatewayError):
    """No answer came from the gateway; the request may have been carried out."""


class CacheError(HoldfastError):
    """The cached value cannot be given."""


class CacheConfigError(CacheError, ValueError):
    """The cache is declared in a way that cannot work."""


class CacheKeyError(CacheError, ValueError):
    """The key or tag cannot be used."""


class CacheValueError(CacheError, ValueError):
    """The value cannot be cached."""


class LoadFailed(CacheError):
    """Another caller's load failed a moment ago, and the next is not due yet."""

    key: str = ""
    #: Seconds until the next load.
    retry_after: float = 0.0


class LimitError(HoldfastError):
    """The limit says no, or cannot say."""


class InvalidLimit(LimitError, ValueError):
    """The limit cannot be understood."""


class CostTooHigh(InvalidLimit):
    """The cost is above what is ever admitted at once."""

    cost: int = 0
    #: The most that is ever admitted at once.
    most: int = 0


class Unpriced(InvalidLimit):
    """The call has no price, and a budget of money must not be spent on it."""


class LimitExceeded(LimitError):
    """The limit refused."""

    #: Which limit refused, and for which key.
    limit: str = ""
    #: Seconds until it admits.
    retry_after: float = 0.0


class BudgetNotRebuilt(LimitError):
    """The counters of the budget were lost; nothing is admitted until they are rebuilt from Postgres."""

    #: The tree, and its windows, as (period, subject), that are not known.
    root: str = ""
    windows: Sequence[Any] = ()


class LimitNotFound(LimitError):
    """No limit policy has this name."""


class LockError(HoldfastError):
    """The lock cannot be had."""

    #: The name of the lock.
    name: str = ""


class InvalidLock(LockError, ValueError):
    """The lock cannot be understood."""


class LockBusy(LockError):
    """Another holds the lock."""


class LockReentered(LockError):
    """This thread holds the lock already; taken again, it would wait for itself."""


class LockLost(LockError):
    """The lock was lost before its holder was done; another may have held it meanwhile."""

    #: The fencing token under which it was held; 0 where there is none.
    fence: int = 0


class StreamError(HoldfastError):
    """The stream cannot be used as asked."""


class InvalidStream(StreamError, ValueError):
    """The name or range of a stream cannot be used."""


class InvalidEntry(StreamError, ValueError):
    """The entry cannot be used."""

    #: Which field is wrong, as far as that is known.
    field: str = ""


class ConsumerBusy(StreamError):
    """Entries are pending with the consumer; deleted, it would lose them."""

    pending: int = 0


class DeadLetterNotFound(StreamError):
    """No dead letter has this id."""


class StreamGone(StreamError):
    """The group was lost with its stream, in a flush for instance."""


class InvalidPosition(HoldfastError, ValueError):
    """No reader of events can stand there."""


class LiveError(HoldfastError):
    """It cannot be used so."""


class InvalidLive(LiveError, ValueError):
    """The name, life or value cannot be used."""


class FlagNotFound(LiveError):
    """No flag has this name."""

    #: The name.
    name: str = ""


class SessionConflict(LiveError):
    """The session was written by somebody else since it was read."""

    #: The version that stands now.
    version: int = 0


class SessionGone(LiveError):
    """The session was ended, or its time is over."""
