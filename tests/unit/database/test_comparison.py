"""Two states of a store compared, at rest; also ones that an older version wrote."""

from collections.abc import Callable
from pathlib import Path

from peewee import SqliteDatabase
from playhouse.migrations import Runner

from tests.engines import SqlitePlace
from tests.entries import CATALOG, entry, malformed
from tests.unit.ingest.test_rejections import Store, conflicting
from worker.database import connections, schema
from worker.database.comparison import count, undone
from worker.database.sqlite import SqliteEngine
from worker.events.users import User
from worker.ingest import erasure
from worker.ingest.messages import Entry
from worker.ingest.transaction import Transaction

NOW = 1_700_000_100_000


def at_rest(path: Path, connection: SqliteDatabase) -> Store:
    """A database that no other process has open."""
    return Store(SqlitePlace(path, CATALOG), SqliteEngine(connection), connection)


def state(path: Path, *groups: list[Callable[[], Entry]], then: Callable[[Transaction], object] = lambda _: None) -> Path:
    """A database in which these were handled, and then a change was made."""
    schema.migrate(path, CATALOG, busy_timeout_seconds=5)
    connection = connections.connect(path, busy_timeout_seconds=5)
    with connection.connection_context():
        store = at_rest(path, connection)
        for group in groups:
            store.handle(*group)
        store.transaction(then)
    return path


def test_what_only_the_newer_state_has_is_undone(tmp_path: Path) -> None:
    """Its messages by outcome and time, in order of their ids, whatever lies between them."""
    first = [lambda: entry(5, "m3", email="a"), lambda: entry(6, "m7")]
    more = [conflicting("m5"), lambda: malformed("m1"), lambda: entry(7, "m9", publish_time=1_700_000_000_500)]
    older, newer = state(tmp_path / "older.db", first), state(tmp_path / "newer.db", first, more)
    found = undone(newer=newer, older=older)
    assert found.messages == ["m1", "m5", "m9"]
    assert found.outcomes == {"rejected": 1, "conflict": 1, "created": 1}
    assert (found.oldest_publish_time, found.newest_publish_time) == (1_700_000_000_000, 1_700_000_000_500)
    same = undone(newer=older, older=older)
    assert (same.messages, same.retried, same.discarded, same.oldest_publish_time) == ([], [], [], None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newer.db", "older.db"]


def test_retries_and_discards_are_undone_too(tmp_path: Path) -> None:
    """They are no messages: nothing delivers them again, so they are named."""
    first = [lambda: entry(5, "m1", email="a"), conflicting("m2"), lambda: malformed("m3")]

    def resolve(transaction: Transaction) -> None:
        transaction.erase("5")
        transaction.discard("m3")

    def retry(transaction: Transaction) -> None:
        User.update(email_address="b").execute(transaction.database)
        transaction.retry("m2")

    older = state(tmp_path / "older.db", first)
    found = undone(newer=state(tmp_path / "discarded.db", first, then=resolve), older=older)
    assert (found.messages, found.retried, found.discarded) == ([], [], ["m3"])
    found = undone(newer=state(tmp_path / "retried.db", first, then=retry), older=older)
    assert (found.messages, found.retried, found.discarded) == ([], ["m2"], [])


def test_what_an_earlier_recovery_has_undone_counts_once(tmp_path: Path) -> None:
    """It is in neither of the two states; a message that came back since is not counted again."""
    first = [lambda: entry(5, "m1")]
    lost = [lambda: entry(6, "m2", publish_time=1_600_000_000_000), lambda: entry(7, "m3"), lambda: malformed("m4")]
    older = state(tmp_path / "older.db", first)
    newer = state(tmp_path / "newer.db", first, [lambda: entry(7, "m3"), lambda: entry(8, "m5")])
    left = state(tmp_path / "left.db", first, lost, then=lambda transaction: transaction.discard("m4"))
    found = undone(newer=newer, older=older, replaced=[left, left])
    assert (found.messages, found.before) == (["m2", "m3", "m4", "m5"], 2)
    assert found.outcomes == {"created": 3, "rejected": 1}
    assert (found.oldest_publish_time, found.discarded) == (1_600_000_000_000, [])
    assert undone(newer=newer, older=older).before == 0


def test_a_state_is_counted(tmp_path: Path) -> None:
    """Rows, open rejections, and the message that was handled last."""
    found = count(
        state(tmp_path / "a.db", [lambda: entry(5, "m1", email="a"), conflicting("m2"), lambda: malformed("m3")]), CATALOG
    )
    assert (found["rows"], found["receipts"], found["rejections"], found["open_rejections"]) == ({"users": 1}, 3, 2, 2)
    assert found["last_message"] == "m3"
    empty = count(state(tmp_path / "empty.db"), CATALOG)
    assert (empty["rows"], empty["last_message"], empty["last_message_at"]) == ({"users": 0}, None, None)


def test_a_state_of_before_an_event_was_declared_is_counted_and_erased_from(tmp_path: Path) -> None:
    """A restore to a time before an upgrade is a restore like any other: it may lack the tables of events added since."""
    path = tmp_path / "first.db"
    connection = connections.connect(path, busy_timeout_seconds=5)
    with connection.connection_context():
        Runner(connection, str(schema.MIGRATIONS)).up()
    assert count(path, CATALOG)["rows"] == {"users": 0}
    assert erasure.apply(path, CATALOG, ["5", "6"], now=NOW) == 2
    assert erasure.apply(path, CATALOG, ["5", "6"], now=NOW) == 0
    with connection.connection_context():
        assert at_rest(path, connection).handle(lambda: entry(5, "m1"), lambda: entry(7, "m2")) == ["erased", "created"]
