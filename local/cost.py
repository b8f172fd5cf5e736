"""What a month costs, by formula: requests to the bucket, bytes kept there, the instance, and Pub/Sub.

Prices and latencies are assumptions (`Prices`, `Assumptions`), the counts follow from how the worker and its Litestream work
(worker/ingest/confirmation.py, worker/replica/litestream.yml): one upload for each confirmation, one confirmation after the
other, so that there are never more of them a second than fit into it, however many messages come. Litestream merges its
files every 30 s, 5 minutes and hour, lists two levels whenever it has merged, and keeps what it merged until a full copy of
the database is newer.

The formulas leave out what is small: restores, checkpoints, drills, the log, and every free tier but Pub/Sub's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.config import Settings
from worker.errors import ConfigError

MONTH_SECONDS: Final = 730 * 3600
"""An average month: what clouds bill by."""
DAY_SECONDS: Final = 24 * 3600
RATES: Final = (1.0, 100.0, 1000.0)
"""Messages a second in the tables of docs/cost.md."""
SUSTAINED: Final = (0.1, 1.0, 10.0, 100.0)
"""Messages a second, on average over all of the time for which receipts are kept."""
DEFAULTS: Final = Settings(replica_url="gs://cost/defaults")
_GB: Final = 1e9
_GIB: Final = 2**30
MERGES: Final = (30.0, 300.0, 3600.0)
"""Seconds between two merges, by level (worker/replica/litestream.yml)."""
CHECK_SECONDS: Final = 300.0
"""Between two looks for slots that may be deleted, beside those after each merge (worker/replica/litestream.yml)."""
SLOTS_SECONDS: Final = 330.0
"""How long a slot is kept: five minutes, and until the next merge (worker/replica/litestream.yml)."""
PAGE: Final = 1000
"""Objects that one listing returns at most (Cloud Storage documentation, "Objects: list")."""
_OWN_SECONDS: Final = 30.0
"""About so often Litestream adds a transaction of its own while there is a load: seen, two a minute."""
_LOOK_SECONDS: Final = 10.0
"""Between two looks at the lease before slots may be deleted (worker/replica/generation.py)."""
_START_WRITES: Final = 4
"""Of a start: the lease, the seal, the manifest, the live switch; beside the full copies."""
SPACINGS: Final = (0.0, 0.25, 1.0)
"""UPLOAD_SPACING_SECONDS in the table of docs/cost.md and in bench/spacing.py."""
ACKNOWLEDGED: Final[Mapping[tuple[float, float], tuple[int, int]]] = {
    (0.0, 1.0): (105, 176),
    (0.0, 100.0): (179, 308),
    (0.0, 1000.0): (201, 415),
    (0.25, 1.0): (98, 247),
    (0.25, 100.0): (262, 586),
    (0.25, 1000.0): (269, 601),
    (1.0, 1.0): (1068, 1097),
    (1.0, 100.0): (826, 2131),
    (1.0, 1000.0): (1272, 3150),
}
"""Milliseconds in which half of the acknowledgements, and 99 % of them, were there, by spacing and messages a second:
measured by bench/spacing.py at 80/40 ms. A test compares them with its table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars, in one of the cheapest regions (us-central1), Standard storage, no discount."""

    write: float = 0.005 / 1000
    read: float = 0.0004 / 1000
    gb_month: float = 0.02
    vcpu_second: float = 0.000018
    gib_second: float = 0.000002
    pubsub_tib: float = 40.0
    pubsub_free_gib: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Seconds of one small upload and between two; bytes of a full copy, a message, and its rows; the instance.

    `message_bytes` is what Pub/Sub bills at least for one request. `upload_bytes` and `upload_bytes_per_message` are a
    line through what was seen (2.1 kB for one small message, 8.7 kB for seven), `merged_bytes` and
    `merged_bytes_per_message` one through merged files (5.3 kB for 30 messages, 12.7 kB for 212); so are
    the bytes of a receipt and a user. `starts_a_week` are new lives, each with `copies` full copies of the database: its
    first file at each level, and a snapshot.
    """

    put_seconds: float = 0.077
    return_seconds: float = 0.010
    database_bytes: float = 10e6
    message_bytes: float = 1000
    upload_bytes: float = 1000
    upload_bytes_per_message: float = 1000
    merged_bytes: float = 4000
    merged_bytes_per_message: float = 40
    receipt_bytes: float = 56
    user_bytes: float = 38
    starts_a_week: float = 2
    copies: int = 4
    vcpus: float = 1
    memory_gib: float = 1


@dataclass(frozen=True, slots=True)
class Month:
    """One month under one load: counts, bytes, and dollars."""

    uploads: float
    writes: float
    listings: float
    reads: float
    kept_gb: float
    copies_gb: float
    """Of what is kept: full copies of the database."""
    pubsub_gib: float
    requests_dollars: float
    storage_dollars: float
    instance_dollars: float
    pubsub_dollars: float

    @property
    def dollars(self) -> float:
        """All of it."""
        return self.requests_dollars + self.storage_dollars + self.instance_dollars + self.pubsub_dollars


def uploads_a_second(rate: float, given: Assumptions, spacing: float = DEFAULTS.upload_spacing_seconds) -> float:
    """Confirmations a second: one for each message, until they follow one another without a pause."""
    return min(rate, 1 / max(given.put_seconds + given.return_seconds, spacing))


def acknowledged_in(
    share: float, rate: float, given: Assumptions, spacing: float = DEFAULTS.upload_spacing_seconds
) -> float:
    """Seconds within which that share of the messages is acknowledged, when they come at any time.

    A message that comes while no upload may begin waits for the next one, and any time up to a whole interval is as likely.
    """
    upload = given.put_seconds + given.return_seconds
    interval = max(upload, spacing)
    busy = min(1.0, rate * interval)
    waited = 0.0 if share <= 1 - busy else interval * (share - (1 - busy)) / busy
    return upload + waited


def month(
    rate: float, *, settings: Settings = DEFAULTS, given: Assumptions | None = None, prices: Prices | None = None
) -> Month:
    """A month of `rate` messages a second, all day, of a process that has run for longer than anything is kept."""
    given, prices = given or Assumptions(), prices or Prices()
    uploads = uploads_a_second(rate, given, settings.upload_spacing_seconds)
    slots = uploads + min(uploads, 1 / _OWN_SECONDS)
    merges = [min(uploads, 1 / seconds) for seconds in MERGES]
    starts = given.starts_a_week / (7 * DAY_SECONDS)
    snapshots = 1 / DAY_SECONDS
    kept_seconds = _kept_seconds(settings)
    # Any write of the record renews it, but few are anything else.
    renewals = 1 / settings.lease_renew_seconds
    writes = (slots + sum(merges) + snapshots + starts * (given.copies + _START_WRITES) + renewals) * MONTH_SECONDS
    listings = _listings_a_second(slots, merges, kept_seconds) * MONTH_SECONDS
    # A merge reads the files of the level below; those of level 0 are on the disk.
    reads = (1 / settings.successor_poll_seconds + min(uploads, 1 / _LOOK_SECONDS) + merges[0] + merges[1]) * MONTH_SECONDS
    merged = sum(merges) * given.merged_bytes + len(merges) * rate * given.merged_bytes_per_message
    copies = given.database_bytes * (snapshots + starts * given.copies) * kept_seconds / _GB
    slot_bytes = slots * given.upload_bytes + rate * given.upload_bytes_per_message
    kept = (slot_bytes * SLOTS_SECONDS + merged * kept_seconds) / _GB + copies
    pubsub = 2 * rate * given.message_bytes * MONTH_SECONDS / _GIB
    instance = given.vcpus * prices.vcpu_second + given.memory_gib * prices.gib_second
    return Month(
        uploads=slots * MONTH_SECONDS,
        writes=writes,
        listings=listings,
        reads=reads,
        kept_gb=kept,
        copies_gb=copies,
        pubsub_gib=pubsub,
        requests_dollars=(writes + listings) * prices.write + reads * prices.read,
        storage_dollars=kept * prices.gb_month,
        instance_dollars=instance * MONTH_SECONDS,
        pubsub_dollars=max(0.0, pubsub - prices.pubsub_free_gib) / 1024 * prices.pubsub_tib,
    )


def _listings_a_second(slots: float, merges: Sequence[float], kept_seconds: float) -> float:
    """After each merge of slots, and at each look beside that, Litestream lists the levels 0 and 1 from end to end.

    Before a merge it lists what is to be merged, which is less than a page.
    """
    looks = merges[0] + 1 / CHECK_SECONDS
    pages = _pages(slots * SLOTS_SECONDS) + _pages(merges[0] * kept_seconds)
    return looks * pages + sum(merges)


def _pages(objects: float) -> int:
    return max(1, math.ceil(objects / PAGE))


def _kept_seconds(settings: Settings) -> float:
    """How long a file above level 0 is kept: until the oldest snapshot that is kept is newer."""
    return (settings.retention_days + 1) * DAY_SECONDS


def database_bytes(rate: float, *, settings: Settings = DEFAULTS, given: Assumptions | None = None) -> float:
    """The database once receipts expire as fast as they come, and each message so far made a user."""
    given = given or Assumptions()
    return rate * settings.receipt_days * DAY_SECONDS * (given.receipt_bytes + given.user_bytes)


def prices_table() -> str:
    """The prices and assumptions that the other tables stand on."""
    given, prices = Assumptions(), Prices()
    rows = [
        ("one write or listing of the bucket (class A)", f"${prices.write * 1000:g} for 1,000"),
        ("one read of the bucket (class B)", f"${prices.read * 1000:g} for 1,000"),
        ("storage, Standard, one region", f"${prices.gb_month:g} for a GB and month"),
        ("Cloud Run, CPU always allocated", f"${prices.vcpu_second * 1e6:g} for 1,000,000 vCPU-seconds"),
        ("Cloud Run, memory", f"${prices.gib_second * 1e6:g} for 1,000,000 GiB-seconds"),
        ("Pub/Sub, published and delivered each", f"${prices.pubsub_tib:g} for a TiB; {prices.pubsub_free_gib:g} GiB free"),
        (
            "one small upload, and what comes between two",
            f"{given.put_seconds * 1000:g} ms, {given.return_seconds * 1000:g} ms",
        ),
        ("a message, as Pub/Sub bills it, both times", f"{given.message_bytes:,.0f} bytes, its least for a request"),
        ("one upload", f"{given.upload_bytes:,.0f} bytes, and {given.upload_bytes_per_message:,.0f} for each message in it"),
        ("a receipt, a user without settings", f"{given.receipt_bytes:g} and {given.user_bytes:g} bytes of the database"),
        (
            "a merged file",
            f"{given.merged_bytes:,.0f} bytes, and {given.merged_bytes_per_message:,.0f} for each message in it",
        ),
        ("full copies of the database", f"one a day, and {given.copies} in each of {given.starts_a_week:g} starts a week"),
        ("the instance", f"{given.vcpus:g} vCPU, {given.memory_gib:g} GiB"),
    ]
    return _table(("Assumed", "Value"), rows)


def loads_table() -> str:
    """A month of each of `RATES`, with a database of the assumed size."""
    found = [month(rate) for rate in RATES]
    rows = [
        ("uploads a second", *(f"{uploads_a_second(rate, Assumptions()):.1f}" for rate in RATES)),
        ("writes of the bucket, million", *(f"{each.writes / 1e6:.1f}" for each in found)),
        ("listings, million", *(f"{each.listings / 1e6:.1f}" for each in found)),
        ("reads of the bucket, million", *(f"{each.reads / 1e6:.1f}" for each in found)),
        ("kept in the bucket, GB", *(f"{each.kept_gb:,.1f}" for each in found)),
        ("of these, full copies of the database, GB", *(f"{each.copies_gb:,.1f}" for each in found)),
        ("Pub/Sub, GiB", *(f"{each.pubsub_gib:,.0f}" for each in found)),
        ("**requests to the bucket**", *(f"${each.requests_dollars:,.0f}" for each in found)),
        ("**storage**", *(f"${each.storage_dollars:,.0f}" for each in found)),
        ("**instance**", *(f"${each.instance_dollars:,.0f}" for each in found)),
        ("**Pub/Sub**", *(f"${each.pubsub_dollars:,.0f}" for each in found)),
        ("**a month**", *(f"${each.dollars:,.0f}" for each in found)),
    ]
    return _table(("A month of", *(f"{rate:,g} msg/s" for rate in RATES)), rows)


def sizes_table() -> str:
    """What an average rate does to the database, and the database to the full copies that are kept."""
    rows = []
    for rate in SUSTAINED:
        size = database_bytes(rate)
        kept = month(rate, given=Assumptions(database_bytes=size)).copies_gb
        rows.append(
            (
                f"{rate:g}",
                f"{rate * DEFAULTS.receipt_days * DAY_SECONDS / 1e6:,.1f}",
                f"{size / _GB:,.2f}",
                f"{4 * size / _GIB:,.1f}",
                f"{kept:,.1f} (${kept * Prices().gb_month:,.2f})",
            )
        )
    return _table(("msg/s, on average", "receipts, million", "database, GB", "memory for it, GiB", "copies kept, GB"), rows)


def spacings_table() -> str:
    """What each of `SPACINGS` costs a month at each of `RATES`, and how long an acknowledgement then takes."""
    rows = []
    for spacing in SPACINGS:
        settings = replace(DEFAULTS, upload_spacing_seconds=spacing)
        for rate in RATES:
            found, (half, most) = month(rate, settings=settings), ACKNOWLEDGED[spacing, rate]
            rows.append(
                (
                    f"{spacing:g}",
                    f"{rate:,g}",
                    f"{uploads_a_second(rate, Assumptions(), spacing):.1f}",
                    f"${found.requests_dollars:,.0f}",
                    f"${found.storage_dollars:,.2f}",
                    f"{half:,} / {most:,}",
                )
            )
    header = ("`UPLOAD_SPACING_SECONDS`", "msg/s", "uploads a second", "requests", "storage", "ack: p50 / p99, ms")
    return _table(header, rows)


def register(subparsers: Any) -> None:
    """Add the subcommand `cost`."""
    parser = subparsers.add_parser(
        "cost",
        help="what a month costs, by formula",
        description="Print what a month of a load costs, with the prices and assumptions of docs/cost.md and the default\n"
        "settings of the worker, or those given here.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given, defaults = Assumptions(), DEFAULTS
    parser.add_argument("--rate", type=_amount, required=True, help="messages a second, all month")
    parser.add_argument("--put-ms", type=_some, default=given.put_seconds * 1000, help="one upload (default: %(default)g)")
    parser.add_argument(
        "--spacing",
        type=_amount,
        default=defaults.upload_spacing_seconds,
        help="UPLOAD_SPACING_SECONDS (default: %(default)g)",
    )
    parser.add_argument(
        "--database-mb", type=_amount, default=given.database_bytes / 1e6, help="its size (default: %(default)g)"
    )
    parser.add_argument("--vcpus", type=_amount, default=given.vcpus, help="of the instance (default: %(default)g)")
    parser.add_argument(
        "--memory-gib", type=_amount, default=given.memory_gib, help="of the instance (default: %(default)g)"
    )
    parser.add_argument(
        "--retention-days", type=_amount, default=defaults.retention_days, help="RETENTION_DAYS (default: %(default)g)"
    )
    parser.set_defaults(run=_run)


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, and not {text}")
    return number


def _some(text: str) -> float:
    if (number := _amount(text)) == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _run(arguments: argparse.Namespace) -> int:
    try:
        settings = Settings(
            replica_url=DEFAULTS.replica_url,
            retention_days=arguments.retention_days,
            upload_spacing_seconds=arguments.spacing,
        )
    except ConfigError as error:
        print(f"local cost: {error}", file=sys.stderr)
        return 2
    given = Assumptions(
        put_seconds=arguments.put_ms / 1000,
        database_bytes=arguments.database_mb * 1e6,
        vcpus=arguments.vcpus,
        memory_gib=arguments.memory_gib,
    )
    found = month(arguments.rate, settings=settings, given=given)
    half, most = (
        f"{1000 * acknowledged_in(share, arguments.rate, given, arguments.spacing):,.0f} ms" for share in (0.5, 0.99)
    )
    for what, value in (
        ("uploads", f"{found.uploads:,.0f}"),
        ("writes of the bucket", f"{found.writes:,.0f}"),
        ("listings", f"{found.listings:,.0f}"),
        ("reads of the bucket", f"{found.reads:,.0f}"),
        ("kept in the bucket", f"{found.kept_gb:,.1f} GB"),
        ("Pub/Sub", f"{found.pubsub_gib:,.1f} GiB"),
        ("requests to the bucket", f"${found.requests_dollars:,.2f}"),
        ("storage", f"${found.storage_dollars:,.2f}"),
        ("instance", f"${found.instance_dollars:,.2f}"),
        ("Pub/Sub", f"${found.pubsub_dollars:,.2f}"),
        ("a month", f"${found.dollars:,.2f}"),
        ("acknowledged: half", half),
        ("acknowledged: 99 %", most),
    ):
        print(f"{what:<24}{value:>20}")
    return 0


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (header, ("---", *["---:"] * (len(header) - 1)), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
