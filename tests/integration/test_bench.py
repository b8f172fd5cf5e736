"""The benchmark, once and short, on the real parts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from local.worker_process import ROOT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")
def test_a_short_run_gets_durable_acknowledgements_only() -> None:
    """Every answer is 2xx, every message its own user, and a restore of the bucket holds all that was acknowledged."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.push", "--rounds", "1", "--seconds", "1", "--connections", "64", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert report["ours"][0]["requests"] > 0
    assert report["in_bucket"] == report["users"] >= report["acknowledged"] > 0
