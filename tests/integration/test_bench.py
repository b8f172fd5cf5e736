"""The measurements, once and short, on the real parts."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from bench import part
from bench.figures import HEADER
from local.worker_process import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk"),
]


def bench(module: str, *arguments: str) -> str:
    """What a measurement prints; it must hold figures."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.torture] if name in ("latency", "handover", "bucket", "console") else [])
        for name in part.NAMES
    ],
)
def test_a_part_of_the_table_runs(name: str) -> None:
    """Every answer is 2xx, and a restore of the bucket holds what was acknowledged: else it would end with 1."""
    printed = bench("bench", "--quick", "--only", name)
    header, *rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert header == f"| {' | '.join(HEADER)} |"
    assert f"`python -m bench.{name}`" in rows[1]


@pytest.mark.torture
def test_a_short_soak_and_flood() -> None:
    """What is over the limit is refused, memory is read, and afterwards everything is acknowledged again."""
    printed = bench("bench.soak", "--minutes", "0.05", "--warm-up-seconds", "1", "--flood-seconds", "2", "--rate", "100")
    assert "RSS of Litestream: growth" in printed
    assert "refused with 503" in printed


@pytest.mark.torture
def test_a_commit_beside_itself() -> None:
    """The base runs from a folder of its own, which is gone afterwards."""
    printed = bench("bench.compare", "HEAD", "--rounds", "1", "--seconds", "1")
    assert "| msg/s at 80/40 ms |" in printed
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "solowriter-base-" not in worktrees


def test_a_long_generation_beside_a_commit_and_litestream_alone() -> None:
    """Each side gets its uploads and is restored; what was acknowledged is in the bucket, or it would end with 1."""
    small = ("--uploads", "30", "--settle", "0", "--runs", "1", "--snapshot-mb", "0")
    printed = bench("bench.generation", "--base", "HEAD", *small)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ").partition(",")[0] for row in rows] == ["this checkout", "the base", "Litestream alone"]
    assert all(int(row[1]) >= 30 and int(row[2]) >= 30 for row in rows)
    assert "cannot" not in printed
