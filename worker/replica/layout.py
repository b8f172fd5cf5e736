"""The formats of what stands below `generations/`: manifests, and the names and times of Litestream's files. Pure.

The time of a file is what Litestream wrote into its metadata: when its newest transaction was committed, by the writer's
clock. Source: Litestream 0.5.17, gs/replica_client.go (`litestream-timestamp`), and its names for LTX files.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from worker.bucket import StoredObject
from worker.errors import RecordInvalid

MANIFEST: Final = "manifest.json"
ROOT: Final = "generations/"
_FILE: Final = re.compile(r"ltx/(?P<level>\d+)/(?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16})\.ltx")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` in a generation: what it continues, and who began it. Written once.

    `replaced` is the generation that was live when this one began; it differs from `base` after a recovery to an earlier
    one. Manifests written before there were recoveries do not have it.
    """

    format: int = 1
    epoch: int
    base: str | None
    base_txid: int
    started_at: datetime
    revision: str
    holder: str
    replaced: str | None = None


def slot_name(path: str, transaction: int) -> str:
    """The name of a slot: the file of level 0 that holds one transaction of the generation at `path`."""
    return f"{path}/ltx/0/{transaction:016x}-{transaction:016x}.ltx"


def path_of(epoch: int) -> str:
    """The generation's path under the store's prefix."""
    return f"{ROOT}{epoch:016x}"


class File(msgspec.Struct, frozen=True):
    """One of Litestream's files: the transactions from `first` to `last`, committed by `time`."""

    name: str
    level: int
    first: int
    last: int
    time: datetime
    bytes: int


def read_manifest(data: bytes, path: str) -> Manifest:
    """A manifest as it stands in the bucket.

    Raises:
        RecordInvalid: It is not one this version can read.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise RecordInvalid(
            f"{path}/{MANIFEST} cannot be read ({error}): it was written by a newer version, or by hand"
        ) from None


def files(path: str, stored: Sequence[StoredObject]) -> list[File]:
    """Litestream's files among a generation's objects. Pure."""
    found = []
    for each in stored:
        match = _FILE.fullmatch(each.name.removeprefix(f"{path}/"))
        if match is not None:
            time = _time(each.metadata.get("litestream-timestamp", "")) or each.created
            found.append(
                File(each.name, int(match["level"]), int(match["first"], 16), int(match["last"], 16), time, each.bytes)
            )
    return found


def _time(text: str) -> datetime | None:
    try:
        return msgspec.convert(text, datetime).astimezone(UTC)
    except msgspec.ValidationError:
        return None
