"""Whether a PostgreSQL server keeps what it has committed, and has room for the instances."""

from typing import Any, Final

import peewee

from worker.config import Settings
from worker.config.addresses import without_secrets
from worker.database import postgresql
from worker.database.postgresql import READERS_MAX, Durability, Server
from worker.operations.doctor.findings import Finding, note, ok, refused, warning

_CONNECTIONS_EACH: Final = READERS_MAX + 3
"""An instance's: for reading, for writing, for being listed, and at its start for the migrations."""


def examine(settings: Settings) -> list[Finding]:
    """Ask the server that the settings name. It blocks for some seconds at most."""
    place = without_secrets(settings.database_url)
    database = Server.of(settings).connect()
    try:
        database.connect()
        found = Durability.of(database)
        may_create, limit = _ask(
            database,
            "has_schema_privilege(current_user, current_schema(), 'CREATE'), current_setting('max_connections')::int",
        )
    except peewee.PeeweeException as error:
        text = str(error).strip().partition("\n")[0]
        step = "look at DATABASE_URL, DATABASE_PASSWORD_FILE and the network"
        return [refused("postgresql", f"{place} cannot be used: {text}", step)]
    finally:
        postgresql.drop(database)
    return [
        ok("postgresql", f"{place}, version {found.version}"),
        _durable(found),
        _standby(found),
        _privileges(bool(may_create)),
        note(
            "postgresql: connections",
            f"max_connections is {limit}: room for {limit // _CONNECTIONS_EACH} instances with {_CONNECTIONS_EACH} each",
        ),
    ]


def _ask(database: Any, what: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = database.execute_sql(f"SELECT {what}").fetchone()
    return row


def _durable(found: Durability) -> Finding:
    check = "postgresql: durability"
    if wrong := found.unsafe():
        text, _, step = wrong.partition("; ")
        return refused(check, text, step)
    if found.read_only == "on":
        return refused(check, "it takes no writes: it is a standby", "name the primary, or every host, in DATABASE_URL")
    return ok(check, f"synchronous_commit is {found.synchronous_commit}, and fsync is on")


def _standby(found: Durability) -> Finding:
    check = "postgresql: standby"
    if found.standbys:
        return ok(check, f"synchronous_standby_names is {found.standbys}")
    text = (
        "no synchronous standby is named: a lost disk loses acknowledged messages, unless your provider replicates the disk"
    )
    return warning(check, text, "set synchronous_standby_names, or make the instance highly available (Cloud SQL: regional)")


def _privileges(may_create: bool) -> Finding:
    check = "postgresql: privileges"
    if may_create:
        return ok(check, "the role may create tables")
    return refused(check, "the role may not create tables in its schema", "GRANT CREATE ON SCHEMA public TO the role")
