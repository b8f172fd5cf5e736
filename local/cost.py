"""What a month costs, by formula: requests to the bucket, bytes kept there, the instance, and Pub/Sub.

Prices and latencies are assumptions (`Prices`, `Assumptions`), the counts follow from how the worker works: one upload and
one read of the lease record for each confirmation, and confirmations one after the other (worker/replication.py). So there
are never more of them a second than one upload and one read fit into it, however many messages come.

The formulas leave out what is small: listings, restores, checkpoints, drills, the log, and every free tier but Pub/Sub's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
_SWITCH_WRITES: Final = 3
"""Of a roll-over: the next epoch, its manifest, the live switch; beside the full copies."""


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
    """Seconds for one small upload and one small read; bytes of a full copy, a message, and its rows; the instance.

    `message_bytes` is what Pub/Sub bills at least for one request. `upload_bytes` and `upload_bytes_per_message` are a
    line through what was seen (1.7 kB for one small message, 8.7 kB for seven); so are the bytes of a receipt and a user.
    """

    put_seconds: float = 0.077
    get_seconds: float = 0.044
    database_bytes: float = 10e6
    message_bytes: float = 1000
    upload_bytes: float = 1000
    upload_bytes_per_message: float = 1000
    receipt_bytes: float = 56
    user_bytes: float = 38
    copies: int = 2
    vcpus: float = 1
    memory_gib: float = 1


@dataclass(frozen=True, slots=True)
class Month:
    """One month under one load: counts, bytes, and dollars."""

    uploads: float
    writes: float
    reads: float
    kept_gb: float
    copied_gb_a_week: float
    pubsub_gib: float
    requests_dollars: float
    storage_dollars: float
    instance_dollars: float
    pubsub_dollars: float

    @property
    def dollars(self) -> float:
        """All of it."""
        return self.requests_dollars + self.storage_dollars + self.instance_dollars + self.pubsub_dollars


def uploads_a_second(rate: float, given: Assumptions) -> float:
    """Confirmations a second: one for each message, until they follow one another without a pause."""
    return min(rate, 1 / max(given.put_seconds, DEFAULTS.upload_spacing_seconds))


def month(
    rate: float, *, settings: Settings = DEFAULTS, given: Assumptions | None = None, prices: Prices | None = None
) -> Month:
    """A month of `rate` messages a second, all day."""
    given, prices = given or Assumptions(), prices or Prices()
    uploads = uploads_a_second(rate, given)
    roll_overs, copies = 0.0, 1 / DAY_SECONDS
    # Any write of the record renews it, but few are anything else.
    writes = (uploads + copies + roll_overs * _SWITCH_WRITES + 1 / settings.lease_renew_seconds) * MONTH_SECONDS
    reads = (uploads + 1 / settings.successor_poll_seconds) * MONTH_SECONDS
    bytes_a_second = uploads * given.upload_bytes + rate * given.upload_bytes_per_message + copies * given.database_bytes
    kept = bytes_a_second * settings.retention_days * DAY_SECONDS / _GB
    pubsub = 2 * rate * given.message_bytes * MONTH_SECONDS / _GIB
    instance = given.vcpus * prices.vcpu_second + given.memory_gib * prices.gib_second
    return Month(
        uploads=uploads * MONTH_SECONDS,
        writes=writes,
        reads=reads,
        kept_gb=kept,
        copied_gb_a_week=copies * given.database_bytes * 7 * DAY_SECONDS / _GB,
        pubsub_gib=pubsub,
        requests_dollars=writes * prices.write + reads * prices.read,
        storage_dollars=kept * prices.gb_month,
        instance_dollars=instance * MONTH_SECONDS,
        pubsub_dollars=max(0.0, pubsub - prices.pubsub_free_gib) / 1024 * prices.pubsub_tib,
    )


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
        ("one small upload, one small read", f"{given.put_seconds * 1000:g} ms, {given.get_seconds * 1000:g} ms"),
        ("a message, as Pub/Sub bills it, both times", f"{given.message_bytes:,.0f} bytes, its least for a request"),
        ("one upload", f"{given.upload_bytes:,.0f} bytes, and {given.upload_bytes_per_message:,.0f} for each message in it"),
        ("a receipt, a user without settings", f"{given.receipt_bytes:g} and {given.user_bytes:g} bytes of the database"),
        ("full copies of the database in a roll-over", f"{given.copies}"),
        ("the instance", f"{given.vcpus:g} vCPU, {given.memory_gib:g} GiB"),
    ]
    return _table(("Assumed", "Value"), rows)


def loads_table() -> str:
    """A month of each of `RATES`, with a database of the assumed size."""
    found = [month(rate) for rate in RATES]
    rows = [
        ("uploads a second", *(f"{uploads_a_second(rate, Assumptions()):.1f}" for rate in RATES)),
        ("writes of the bucket, million", *(f"{each.writes / 1e6:.1f}" for each in found)),
        ("reads of the bucket, million", *(f"{each.reads / 1e6:.1f}" for each in found)),
        ("full copies written in a week, GB", *(f"{each.copied_gb_a_week:,.0f}" for each in found)),
        ("kept in the bucket, GB", *(f"{each.kept_gb:,.0f}" for each in found)),
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
        kept = size * DEFAULTS.retention_days / _GB
        rows.append(
            (
                f"{rate:g}",
                f"{rate * DEFAULTS.receipt_days * DAY_SECONDS / 1e6:,.1f}",
                f"{size / _GB:,.2f}",
                f"{4 * size / _GIB:,.1f}",
                f"{kept:,.0f} (${kept * Prices().gb_month:,.0f})",
            )
        )
    return _table(("msg/s, on average", "receipts, million", "database, GB", "memory for it, GiB", "copies kept, GB"), rows)


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
    parser.add_argument("--get-ms", type=_some, default=given.get_seconds * 1000, help="one read (default: %(default)g)")
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
        )
    except ConfigError as error:
        print(f"local cost: {error}", file=sys.stderr)
        return 2
    found = month(
        arguments.rate,
        settings=settings,
        given=Assumptions(
            put_seconds=arguments.put_ms / 1000,
            get_seconds=arguments.get_ms / 1000,
            database_bytes=arguments.database_mb * 1e6,
            vcpus=arguments.vcpus,
            memory_gib=arguments.memory_gib,
        ),
    )
    for what, value in (
        ("writes of the bucket", f"{found.writes:,.0f}"),
        ("reads of the bucket", f"{found.reads:,.0f}"),
        ("kept in the bucket", f"{found.kept_gb:,.1f} GB"),
        ("Pub/Sub", f"{found.pubsub_gib:,.1f} GiB"),
        ("requests to the bucket", f"${found.requests_dollars:,.2f}"),
        ("storage", f"${found.storage_dollars:,.2f}"),
        ("instance", f"${found.instance_dollars:,.2f}"),
        ("Pub/Sub", f"${found.pubsub_dollars:,.2f}"),
        ("a month", f"${found.dollars:,.2f}"),
    ):
        print(f"{what:<24}{value:>20}")
    return 0


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (header, ("---", *["---:"] * (len(header) - 1)), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
