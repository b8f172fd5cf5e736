"""The benchmark measures what it says: the same server on both sides, figures judged before they are written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench import push
from bench.push import Result
from bench.wrk import Run

ROOT = Path(__file__).parent.parent.parent


def a_run(**changes: int) -> Run:
    """A run of 1,000 answers in a second, all of them 2xx unless changed."""
    whole = dict.fromkeys(("not_2xx", "connect", "read", "write", "timeout"), 0)
    return Run(**{**whole, "requests": 1000, "microseconds": 1_000_000, "p50": 1000, "p99": 2000, **changes})


def server_settings(file: Path) -> dict[str, str]:
    """The keywords a module gives uvicorn, with the values of its own constants."""
    tree = ast.parse(file.read_text())
    constants = {
        ast.unparse(node.target): ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.value is not None
    }
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "uvicorn.Config"]
    values = {keyword.arg or "**": ast.unparse(keyword.value) for keyword in call.keywords}
    return {name: constants.get(value, value) for name, value in values.items()}


def test_the_ceiling_is_served_as_the_worker_is() -> None:
    """The no-op endpoint gives uvicorn exactly the settings that the supervisor gives it."""
    assert server_settings(ROOT / "bench" / "noop.py") == server_settings(ROOT / "worker" / "supervisor.py")


@pytest.mark.parametrize("problem", ["not_2xx", "connect", "read", "write", "timeout"])
def test_a_run_with_a_problem_is_no_figure(problem: str) -> None:
    """One answer other than 2xx, or one socket error, on either side is reported by name."""
    faults = Result([a_run(), a_run(**{problem: 1})], [a_run(), a_run()]).faults
    assert faults == [f"ours, round 2: 1 {problem}"]
    assert Result([a_run()], [a_run(**{problem: 2})]).faults == [f"ceiling, round 1: 2 {problem}"]


def test_what_is_missing_from_the_bucket_is_a_fault() -> None:
    """More acknowledgements than receipts, or fewer users than messages, and it is no figure."""
    assert Result([], [], acknowledged=2, in_bucket=2, users=2).faults == []
    assert Result([], [], acknowledged=2, in_bucket=1, users=1).faults == ["2 acknowledged, but only 1 in the bucket"]
    assert Result([], [], acknowledged=2, in_bucket=2, users=1).faults == ["2 messages made 1 users: they were not distinct"]


def test_the_ratio_is_taken_pair_by_pair() -> None:
    """Round 1 of ours is compared with round 1 of the ceiling, and so on."""
    result = Result([a_run(requests=500), a_run(requests=900)], [a_run(), a_run()])
    assert result.ratios == [0.5, 0.9]


def test_without_wrk_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the command to install it, before anything is started."""
    monkeypatch.setenv("PATH", "")
    assert push.main([]) == 2
    assert "apt-get install wrk" in capsys.readouterr().err
