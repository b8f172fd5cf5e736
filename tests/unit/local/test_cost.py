"""The figures of docs/cost.md, worked out a second time from the settings' defaults and the prices that the page states."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from bench import figures
from local import cost
from local.__main__ import main
from worker.config import Settings

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = (ROOT / "docs" / "cost.md").read_text()
MONTH = 30.4166667 * 24 * 3600


def cells(page: str, first: str) -> list[str]:
    """The cells of the first row that begins so, after that."""
    (found, *_) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", page, re.MULTILINE)
    return [cell.strip() for cell in found.split("|")]


def row(first: str, after: str = "") -> list[float]:
    """The numbers of a table's row, in the text that follows `after`."""
    return [
        float(re.sub(r"[$,]", "", cell.split("(")[0])) for cell in cells(PAGE.partition(after)[2] if after else PAGE, first)
    ]


def test_uploads_stop_growing_where_the_bucket_has_no_more_time() -> None:
    """One for each message, and at most 1 / (0.077 + 0.010) a second; or one each UPLOAD_SPACING_SECONDS."""
    assert row("uploads a second") == pytest.approx([1, 11.49, 11.49], abs=0.05)
    given = cost.Assumptions(put_seconds=0.4, return_seconds=0.1)
    assert [cost.uploads_a_second(rate, given) for rate in (0.5, 2.0, 50.0)] == [0.5, 2.0, 2.0]
    assert [cost.uploads_a_second(50.0, given, spacing) for spacing in (0.25, 1.0, 4.0)] == [2.0, 1.0, 0.25]


def test_an_acknowledgement_waits_for_its_upload_and_for_the_one_under_way() -> None:
    """Alone it takes one upload; under load a whole interval more at most, and half of one as a rule."""
    given = cost.Assumptions(put_seconds=0.08, return_seconds=0.02)
    assert cost.acknowledged_in(0.99, 0.01, given) == pytest.approx(0.1)
    assert cost.acknowledged_in(0.5, 1000, given) == pytest.approx(0.15)
    assert cost.acknowledged_in(0.99, 1000, given, 1.0) == pytest.approx(1.09)
    assert cost.acknowledged_in(0.5, 0.6, given, 1.0) == pytest.approx(0.1 + 0.1 / 0.6)


@pytest.mark.parametrize(("column", "rate"), [(0, 1), (1, 100), (2, 1000)])
def test_each_column_follows_from_its_rate(column: int, rate: float) -> None:
    """Requests, bytes and dollars, by hand."""
    defaults = Settings(replica_url="gs://acme-users/prod")
    slots = min(rate, 1 / 0.087) + 1 / 30
    merges = 1 / 30 + 1 / 300 + 1 / 3600
    starts = 2 / (7 * 86400)
    kept_seconds = (defaults.retention_days + 1) * 86400
    writes = (slots + merges + 1 / 86400 + starts * 8 + 1 / defaults.lease_renew_seconds) * MONTH
    pages = math.ceil(slots * 330 / 1000) + math.ceil(kept_seconds / 30 / 1000)
    listings = ((1 / 30 + 1 / 300) * pages + merges) * MONTH
    reads = (1 / defaults.successor_poll_seconds + 0.1 + 1 / 30 + 1 / 300) * MONTH
    copies = (8 + 2 * 8 / 7 * 4) * 10e6 / 1e9
    given = cost.Assumptions()
    merged = merges * given.merged_bytes + 3 * rate * given.merged_bytes_per_message
    kept = ((slots * 1000 + rate * 1000) * 330 + merged * kept_seconds) / 1e9 + copies
    delivered = rate * MONTH * 2000 / 2**30
    assert row("writes of the bucket, million")[column] == pytest.approx(writes / 1e6, abs=0.06)
    assert row("listings, million")[column] == pytest.approx(listings / 1e6, abs=0.06)
    assert row("reads of the bucket, million")[column] == pytest.approx(reads / 1e6, abs=0.06)
    assert row("of these, full copies of the database, GB")[column] == pytest.approx(copies, abs=0.06)
    assert row("kept in the bucket, GB")[column] == pytest.approx(kept, abs=0.06)
    assert row("Pub/Sub, GiB")[column] == pytest.approx(delivered, abs=0.6)
    parts = (
        (writes + listings) * 5e-6 + reads * 4e-7,
        kept * 0.02,
        MONTH * (1.8e-5 + 2e-6),
        max(0, delivered - 10) * 40 / 1024,
    )
    names = ("**requests to the bucket**", "**storage**", "**instance**", "**Pub/Sub**")
    for name, dollars in zip(names, parts, strict=True):
        assert row(name)[column] == pytest.approx(dollars, abs=0.6), name
    assert row("**a month**")[column] == pytest.approx(sum(parts), abs=0.6)


@pytest.mark.parametrize("spacing", cost.SPACINGS)
@pytest.mark.parametrize("rate", cost.RATES)
def test_a_spacing_costs_what_its_uploads_cost(spacing: float, rate: float) -> None:
    """The page's table; what an acknowledgement takes is what bench/README.md says was measured."""
    first = f"{spacing:g} | {rate:,.0f}"
    uploads, requests, _, acknowledged = cells(PAGE, first)
    assert float(uploads) == pytest.approx(min(rate, 1 / max(0.087, spacing)), abs=0.06)
    settings = Settings(replica_url="gs://acme-users/prod", upload_spacing_seconds=spacing)
    assert float(requests.lstrip("$")) == pytest.approx(cost.month(rate, settings=settings).requests_dollars, abs=0.6)
    measured = cells(figures.README.read_text().partition(figures.markers("spacing")[0])[2], first)
    assert acknowledged == f"{measured[1]} / {measured[2]}"


def test_what_litestream_does_of_its_own_accord_is_as_the_formula_says() -> None:
    """litestream.yml: its merges, its looks for old slots, and how long slots stay."""
    config = (ROOT / "worker" / "replica" / "litestream.yml").read_text()
    assert re.findall(r"^  - interval: (\w+)$", config, re.MULTILINE) == ["30s", "5m", "1h"]
    assert list(cost.MERGES) == [30, 300, 3600]
    assert re.findall(r"^l0-retention[a-z-]*: (\w+)$", config, re.MULTILINE) == ["5m", "5m"]
    assert (cost.SLOTS_SECONDS, cost.CHECK_SECONDS) == (300 + 30, 300)


@pytest.mark.parametrize("rate", ["0.1", "1", "10", "100"])
def test_an_average_rate_fills_the_database_with_receipts(rate: str) -> None:
    """32 days of receipts, and a user for each; for 8 days, a copy a day and four in each of two starts a week."""
    million, database, memory, kept = row(rate, after="<!-- database sizes")
    messages = float(rate) * 32 * 86400
    size = messages * (56 + 38)
    assert million == pytest.approx(messages / 1e6, abs=0.06)
    assert database == pytest.approx(size / 1e9, abs=0.006)
    assert memory == pytest.approx(4 * size / 2**30, abs=0.06)
    assert kept == pytest.approx(8 * (1 + 4 * 2 / 7) * size / 1e9, abs=0.06)


def test_the_short_answers_are_those_of_the_table() -> None:
    """The first lines of docs/cost.md, and README.md's comparison, state the sums of the month's table."""
    one, hundred, _ = (f"${sum_:.0f}" for sum_ in row("**a month**"))
    assert cells(PAGE, "with one message a second, all month") == [one]
    assert cells(PAGE, "with 100 a second, all month") == [hundred]
    assert cells((ROOT / "README.md").read_text(), "a month, 1 message a second")[0] == f"[{one}](docs/cost.md)"
    assert cells(PAGE, "that is idle") == [f"${round(row('**instance**')[0]) + 4}"]
    assert re.search(r"a month, about \$4\.", PAGE)


def test_the_page_states_what_fills_an_instance() -> None:
    """The two rates in its text are 32 GiB, a quarter of it the database, divided by what one message a second leaves."""
    stated = re.search(r"an average of (\d+) messages a second fills it, and receipts alone at (\d+)", PAGE)
    assert stated is not None
    quarter, seconds = 8 * 2**30, 32 * 86400
    assert [int(stated[1]), int(stated[2])] == [int(quarter / seconds / 94), int(quarter / seconds / 56)]


def test_the_command_prints_a_month(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m local cost`: an idle store pays for renewals, looks for a successor, and the instance."""
    assert main(["cost", "--rate", "0"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^writes of the bucket +657,100$", printed, re.MULTILINE)
    assert re.search(r"^reads of the bucket +2,628,000$", printed, re.MULTILINE)
    assert re.search(r"^a month +\$56\.99$", printed, re.MULTILINE)


@pytest.mark.parametrize("option", ["--rate=-1", "--rate=nan", "--rate=inf", "--rate=x", "--put-ms=0", "--database-mb=-5"])
def test_the_command_takes_no_amount_that_is_none(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage and the reason, instead of a month that costs less than nothing."""
    with pytest.raises(SystemExit, match="2"):
        main(["cost", "--rate=1", option])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"argument {option.partition('=')[0]}: " in printed.err


def test_the_command_keeps_to_the_bounds_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """What the worker would refuse costs nothing."""
    assert main(["cost", "--rate=1", "--spacing=9"]) == 2
    assert capsys.readouterr().err == "local cost: UPLOAD_SPACING_SECONDS is '9.0' and must be between 0 and 5\n"
