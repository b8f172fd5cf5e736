"""The instances that write one PostgreSQL: each joins at its start, says that it lives, and leaves, by the server's clock.

An instance's number is its epoch: each receipt names the life that wrote it. Nothing depends on who is listed here: what an
instance may write, the database decides with each transaction.
"""

from typing import Any, Final

from peewee import SQL, BigAutoField, BigIntegerField, Model, TextField

from worker.database.models import Connection

ALIVE_SECONDS: Final = 60
"""An instance that has not said that it lives for so long is taken for dead: it says so every 15 s."""
_NOW: Final = SQL("(extract(epoch FROM clock_timestamp()) * 1000)::bigint")


class Instance(Model):
    """One life of an instance. Times are in milliseconds since the epoch."""

    id = BigAutoField()
    holder = TextField()
    revision = TextField()
    began = BigIntegerField()
    seen = BigIntegerField()
    ended = BigIntegerField(null=True)

    class Meta:
        table_name = "instances"


def join(database: Connection, *, holder: str, revision: str) -> int:
    """List an instance that begins; its epoch."""
    row = {"holder": holder, "revision": revision, "began": _NOW, "seen": _NOW}
    epoch: int = Instance.insert(row).execute(database)
    return epoch


def live(database: Connection, epoch: int) -> None:
    """Note that an instance lives."""
    Instance.update(seen=_NOW).where(Instance.id == epoch).execute(database)


def leave(database: Connection, epoch: int) -> None:
    """Note that an instance has ended in order."""
    Instance.update(seen=_NOW, ended=_NOW).where(Instance.id == epoch).execute(database)


def alive(database: Connection) -> list[dict[str, Any]]:
    """The instances that live, oldest first."""
    recent = Instance.seen > SQL(f"(extract(epoch FROM clock_timestamp()) * 1000)::bigint - {ALIVE_SECONDS * 1000}")
    query = Instance.select().where(Instance.ended.is_null() & recent).order_by(Instance.id).dicts()
    rows: list[dict[str, Any]] = list(query.bind(database))  # type: ignore[arg-type]  # of dictionaries
    return rows


def forget(database: Connection, *, days: float) -> int:
    """Delete instances that have not lived for so many days; how many. The count of epochs goes on."""
    old = Instance.seen < SQL(f"(extract(epoch FROM clock_timestamp()) * 1000)::bigint - {round(days * 86_400_000)}")
    deleted: int = Instance.delete().where(old).execute(database)
    return deleted


def begin_after(database: Connection, epoch: int) -> None:
    """Give the next instance a greater epoch than this one: that of a store which was moved here."""
    database.execute_sql(  # type: ignore[no-untyped-call]
        "SELECT setval(pg_get_serial_sequence('instances', 'id'), greatest(%s, (SELECT last_value FROM instances_id_seq)))",
        (epoch,),
    )
