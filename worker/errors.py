"""Every error of the worker, in one tree, and the HTTP status each one answers.

    WorkerError
    ├── ConfigError           a setting is missing, wrong, or does not nest with another      exit 2
    ├── SqliteTooOld          this SQLite can corrupt a database beside Litestream            exit 2
    ├── Unfit                 serving here would be unsafe: `worker doctor` says more         exit 2
    ├── StoreError            the bucket
    │   ├── StoreMissing      no lease record or no bucket where REPLICA_URL points           exit 2
    │   ├── StoreDenied       the credentials may not do this                                 exit 1
    │   ├── StoreUnavailable  no answer or a passing refusal: what happened is not known      retried
    │   │   └── StoreThrottled  429: the object was written less than a second ago           retried
    │   ├── Mismatch          412: the object is not at the generation we named               re-read
    │   ├── NotInReplica      the bucket has no such generation, or nothing of that time      exit 1
    │   └── RecordInvalid     the lease record is not one this version can read               exit 1
    ├── Unconfirmed           whether everything committed is safe is not known           retried
    ├── LeaseLost             another instance owns the store now; nothing may be written     exit 0
    ├── DiskFull              the database's disk is full; a new process begins on a clean one  exit 1
    ├── LeaseHeld             the holder is alive, so its lease is not broken                exit 1
    ├── LitestreamError       the child does not start, sync, restore or stay alive           exit 1
    │   ├── SyncUnavailable   this sync is not known to have reached the bucket               retried
    │   └── RestoreFailed     the live generation could not be restored                       exit 1
    ├── ServiceUnreachable    the running service does not answer, or not yet                 exit 1
    ├── ServiceRefused        the running service answered that this cannot be done           exit 1
    └── RequestError          answered to one sender; `status` says how
        ├── NotAPush          400  the body did not come from a push subscription
        ├── BadQuery          400  a parameter of an operator's request is wrong
        ├── Unauthenticated   401  the token is missing, or not one that was made for this service
        ├── Forbidden         403  the token is genuine, but its bearer may not do this
        ├── NoSuchPath        404  nothing is there; pushes go to POST /
        ├── WrongMethod       405  the path takes other methods
        ├── NotFound          404  there is no such rejection
        ├── Resolved          409  the rejection has been resolved already
        ├── BodyTooLarge      413
        ├── Refused           503  try again: full, starting, draining, or an outage
        └── Unwritable        500  the database refused a message altogether: a bug of ours

"Definitely lost" (`LeaseLost`) and "don't know" (`StoreUnavailable`, `SyncUnavailable`) are different answers. Errors of
other libraries are translated where the library is called (bucket.py, litestream.py, writer.py) and nowhere else. Each
message ends in what the operator can do next.
"""

from typing import Final

REFUSED: Final = ("full", "stopping", "standby", "hold_limit", "unconfirmed", "database", "disk", "unavailable")
"""Why a request is answered 503: too much is held; the service stops; it does not serve yet; a message was not confirmed
within the hold limit, as the request or as its group found; the database; its disk is full; anything else that passes."""


class WorkerError(Exception):
    """The root; `exit_code` is what the process ends with when nothing handles it."""

    exit_code = 1


class ConfigError(WorkerError):
    """A setting is missing, wrong, or does not nest with another (INV-8)."""

    exit_code = 2


class SqliteTooOld(WorkerError):
    """This SQLite can corrupt a WAL database that one process checkpoints while another commits."""

    exit_code = 2


class SchemaDiffers(WorkerError):
    """A table of the database is not what an event's model says; the worker must not write it."""

    exit_code = 2


class Unfit(WorkerError):
    """A check at start found that serving here would be unsafe or would not work."""

    exit_code = 2


class StoreError(WorkerError):
    """Something about the bucket."""


class StoreMissing(StoreError):
    """There is no store where REPLICA_URL points."""

    exit_code = 2


class StoreDenied(StoreError):
    """The bucket refuses our credentials."""


class StoreUnavailable(StoreError):
    """No answer, or a passing refusal: whether the request took effect is unknown."""


class StoreThrottled(StoreUnavailable):
    """The bucket takes one write a second for each object name, and this one came too early: nothing was written."""


class Mismatch(StoreError):
    """412: the object is not at the generation the request named."""


class NotInReplica(StoreError):
    """The bucket holds no such generation, or nothing of that time."""


class RecordInvalid(StoreError):
    """The lease record is not one this version can read."""


class LeaseLost(WorkerError):
    """The lease record names another writer: this process may acknowledge nothing any more (INV-2)."""

    exit_code = 0


class LeaseHeld(WorkerError):
    """The holder is alive, so an operator's break was refused; or it took the lease of a recovery."""


class Unconfirmed(WorkerError):
    """It is not known whether everything committed is safe; asking again is harmless.

    Args:
        message: What is not known, and why.
        committed_in: The transaction that everything committed so far is in, or before; 0: not known either.
        stored: The transaction up to which everything is safe.
    """

    def __init__(self, message: str, *, committed_in: int = 0, stored: int = 0) -> None:
        super().__init__(message)
        self.committed_in, self.stored = committed_in, stored


class DiskFull(WorkerError):
    """The database's disk is full, and what could be freed was freed."""


class LitestreamError(WorkerError):
    """The Litestream child does not start, or does not stay alive."""


class SyncUnavailable(LitestreamError):
    """It is not known whether everything committed has reached the bucket: ask again."""


class RestoreFailed(LitestreamError):
    """The live generation could not be restored; serving would mean serving an empty database (INV-5)."""


class MoveFailed(WorkerError):
    """A store could not be copied from one engine to the other; nothing was kept of the copy."""


class ServiceUnreachable(WorkerError):
    """The running service, which an operator's command asks, does not answer."""


class ServiceRefused(WorkerError):
    """The running service answered an operator's command that this cannot be done; `status` is its answer's, or 0."""

    def __init__(self, text: str, *, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class QueueError(WorkerError):
    """Something about Pub/Sub's snapshots, or about seeking the subscription."""


class QueueUnavailable(QueueError):
    """No answer, or a passing refusal: whether the request took effect is unknown."""


class QueueDenied(QueueError):
    """Pub/Sub refuses our credentials."""


class QueueMissing(QueueError):
    """There is no such subscription or snapshot, or it is not said which is meant."""


class QueueRefused(QueueError):
    """Pub/Sub answered that this cannot be done: a name that is taken, or a limit."""


class NotSeekable(QueueError):
    """The subscription cannot be sought there, or a seek there would drop what it has not delivered."""


class RequestError(WorkerError):
    """Answered to one sender. Its text is sent back, so it never holds user data; `reason` is what metrics call it."""

    status = 500
    reason = "defect"
    retry_after: int | None = None


class NotAPush(RequestError):
    """The body is not a Pub/Sub push, so it did not come from the queue and nothing is stored."""

    status = 400
    reason = "not_a_push"


class BadQuery(RequestError):
    """A parameter of an operator's request is wrong."""

    status = 400
    reason = "bad_query"


class NoSuchPath(RequestError):
    """Nothing answers at this path."""

    status = 404
    reason = "no_such_path"

    def __init__(self) -> None:
        super().__init__("no such path; pushes go to POST /")


class WrongMethod(RequestError):
    """The path takes other methods, which `allowed` names."""

    status = 405
    reason = "wrong_method"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"this path takes {allowed.replace(', ', ' and ')} only")
        self.allowed = allowed


class Unauthenticated(RequestError):
    """The token is missing, or is not one that Google made for this service and that is valid now."""

    status = 401
    reason = "unauthenticated"


class Forbidden(RequestError):
    """The token is genuine, but its bearer may not do this."""

    status = 403
    reason = "forbidden"


class NotFound(RequestError):
    """There is no rejection with this message id."""

    status = 404
    reason = "not_found"


class Resolved(RequestError):
    """The rejection has been resolved already: it was discarded, or a retry of it succeeded."""

    status = 409
    reason = "resolved"


class NotAConflict(RequestError):
    """A rejection that is no conflict was to overwrite a row."""

    status = 409
    reason = "not_a_conflict"


class WrongStore(RequestError):
    """An operator's command was meant for another store than this service's."""

    status = 409
    reason = "wrong_store"


class BodyTooLarge(RequestError):
    """The body is larger than any push of Pub/Sub."""

    status = 413
    reason = "too_large"


class Refused(RequestError):
    """Not now: the sender keeps the message and delivers it again (INV-9). `reason` is one of `REFUSED`."""

    status = 503
    retry_after = 1

    def __init__(self, text: str, *, reason: str = "unavailable") -> None:
        super().__init__(text)
        self.reason = reason


class Unwritable(RequestError):
    """The database refused to keep a message in any way, or refused a change: a bug of ours, or damage."""

    status = 500
    reason = "unwritable"
