"""What the bucket holds, restored afresh by plain Litestream, compared with what was acknowledged."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from worker.replica.litestream import find_binary


class Row(NamedTuple):
    """A row of another table than users: the table, its key's column, and the key."""

    table: str
    column: str
    key: int | str


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison. `lost` and `duplicated` must be empty."""

    users: int
    receipts: int
    lost: list[str]
    duplicated: list[int]
    generation: str

    @property
    def holds(self) -> bool:
        """Whether every acknowledged message is there, once."""
        return not self.lost and not self.duplicated


def live_generation(gcs_url: str, replica_url: str) -> str:
    """The path of the live generation under the bucket, as the lease record names it."""
    import httpx

    bucket, prefix = replica_url.removeprefix("gs://").split("/", 1)
    answer = httpx.get(
        f"{gcs_url}/storage/v1/b/{bucket}/o/{prefix}%2Flease.json", params={"alt": "media"}, trust_env=False, timeout=60
    )
    record: dict[str, Any] = answer.raise_for_status().json()
    return f"{prefix}/{record['live']}"


def restore(gcs_url: str, url: str, output: Path, *options: str) -> None:
    """Plain `litestream restore` with a full integrity check, and further options.

    Raises:
        RuntimeError: It failed; the text says why.
    """
    done = subprocess.run(
        [str(find_binary("litestream")), "restore", "-integrity-check", "full", *options, "-o", str(output), url],
        env={**os.environ, "STORAGE_EMULATOR_HOST": gcs_url},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{url} cannot be restored: {done.stderr.strip()}")


def prove(gcs_url: str, replica_url: str, acknowledged: Mapping[str, int | Row] | Collection[str]) -> Proof:
    """Restore the live generation and look every acknowledged message up in it.

    Args:
        gcs_url: Where the bucket is.
        replica_url: gs://BUCKET/PREFIX.
        acknowledged: Message ids; with the user id, or the other table's row, of each where it is known. That is then looked
            up too.
    """
    bucket = replica_url.removeprefix("gs://").split("/", 1)[0]
    generation = live_generation(gcs_url, replica_url)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "restored.db"
        restore(gcs_url, f"gs://{bucket}/{generation}", file)
        with closing(sqlite3.connect(file)) as database:
            receipts = dict(database.execute("SELECT message_id, outcome FROM receipts"))
            users = {row[0] for row in database.execute("SELECT user_id FROM users")}
            others = _others(database, acknowledged)
            twice = database.execute(
                "SELECT subject FROM receipts WHERE outcome = 'created' GROUP BY subject HAVING count(*) > 1"
            )
            duplicated = [row[0] for row in twice]
    lost = [message for message in acknowledged if message not in receipts]
    if isinstance(acknowledged, Mapping):
        there = users | others
        lost += [message for message, row in acknowledged.items() if message in receipts and row not in there]
    return Proof(len(users), len(receipts), lost, duplicated, generation)


def _others(database: sqlite3.Connection, acknowledged: Mapping[str, int | Row] | Collection[str]) -> set[Row]:
    """The rows of each table that is named, besides users."""
    rows = acknowledged.values() if isinstance(acknowledged, Mapping) else ()
    named = {(row.table, row.column) for row in rows if isinstance(row, Row)}
    return {
        Row(table, column, key)
        for table, column in named
        for (key,) in database.execute(f"SELECT {column} FROM {table}")  # names of our own
    }


def accepted(file: Path) -> dict[str, int]:
    """Message id to user id, from the file that `publisher load --accepted` writes."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["message_id"]: line["user_id"] for line in lines}
