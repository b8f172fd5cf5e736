"""The figures of docs/cost.md, worked out a second time from the settings' defaults and the prices that the page states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from local import cost
from local.__main__ import main
from worker.config import Settings

PAGE = (Path(__file__).parent.parent.parent / "docs" / "cost.md").read_text()
MONTH = 30.4166667 * 24 * 3600


def row(first: str) -> list[float]:
    """The numbers of a table's row."""
    (cells,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [float(re.sub(r"[$,]", "", cell.split("(")[0])) for cell in cells.split("|")]


def test_uploads_stop_growing_where_the_bucket_has_no_more_time() -> None:
    """One for each message, and at most 1 / (0.077 + 0.044) a second."""
    assert row("uploads a second") == pytest.approx([1, 8.26, 8.26], abs=0.05)
    given = cost.Assumptions(put_seconds=0.3, get_seconds=0.2)
    assert [cost.uploads_a_second(rate, given) for rate in (0.5, 2.0, 50.0)] == [0.5, 2.0, 2.0]


@pytest.mark.parametrize(("column", "rate"), [(0, 1), (1, 100), (2, 1000)])
def test_each_column_follows_from_its_rate(column: int, rate: float) -> None:
    """Requests, bytes and dollars, by hand."""
    defaults = Settings(replica_url="gs://acme-users/prod")
    uploads = min(rate, 1 / 0.121) * MONTH
    rolls = uploads / defaults.generation_transactions_max
    writes = uploads + 5 * rolls + MONTH / defaults.lease_renew_seconds
    reads = uploads + MONTH / defaults.successor_poll_seconds
    week = 7 * 24 * 3600 / MONTH
    copied = rolls * 2 * 10e6 * week / 1e9
    kept = copied + (uploads * 1000 + rate * MONTH * 1000) * week / 1e9
    delivered = rate * MONTH * 2000 / 2**30
    assert row("writes of the bucket, million")[column] == pytest.approx(writes / 1e6, abs=0.06)
    assert row("reads of the bucket, million")[column] == pytest.approx(reads / 1e6, abs=0.06)
    assert row("full copies written in a week, GB")[column] == pytest.approx(copied, abs=0.6)
    assert row("kept in the bucket, GB")[column] == pytest.approx(kept, abs=0.6)
    assert row("Pub/Sub, GiB")[column] == pytest.approx(delivered, abs=0.6)
    parts = (
        writes * 5e-6 + reads * 4e-7,
        kept * 0.02,
        MONTH * (1.8e-5 + 2e-6),
        max(0, delivered - 10) * 40 / 1024,
    )
    names = ("**requests to the bucket**", "**storage**", "**instance**", "**Pub/Sub**")
    for name, dollars in zip(names, parts, strict=True):
        assert row(name)[column] == pytest.approx(dollars, abs=0.6), name
    assert row("**a month**")[column] == pytest.approx(sum(parts), abs=0.6)


@pytest.mark.parametrize("rate", ["0.1", "1", "10", "100"])
def test_an_average_rate_fills_the_database_with_receipts(rate: str) -> None:
    """32 days of receipts, and a user for each; copies of all that for 7 days."""
    million, database, memory, kept, kept_less = row(rate)
    messages = float(rate) * 32 * 86400
    size = messages * (56 + 38)
    assert million == pytest.approx(messages / 1e6, abs=0.06)
    assert database == pytest.approx(size / 1e9, abs=0.006)
    assert memory == pytest.approx(4 * size / 2**30, abs=0.06)
    copies = min(float(rate), 1 / 0.121) * 7 * 86400 * 2 * size / 1e9
    assert [kept, kept_less] == pytest.approx([copies / 1000, copies / 10_000], abs=0.6)


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
    assert re.search(r"^writes of the bucket +657,000$", printed, re.MULTILINE)
    assert re.search(r"^reads of the bucket +2,628,000$", printed, re.MULTILINE)
    assert re.search(r"^a month +\$56\.90$", printed, re.MULTILINE)


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
    assert main(["cost", "--rate=1", "--uploads-max=0"]) == 2
    assert capsys.readouterr().err == "local cost: GENERATION_TRANSACTIONS_MAX is '0' and must be at least 10\n"
