"""The measurements measure what they say: the same server on both sides, figures judged before they are written."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from bench import __main__ as everything
from bench import compare, figures, openloop, part, profile, throughput, wrk
from bench.errors import Worthless
from bench.figures import Figure, Target
from bench.wrk import Run
from tests.entries import read
from worker.events.catalog import Content
from worker.ingest.http import envelope

ROOT = Path(__file__).parent.parent.parent.parent


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
    """One answer other than 2xx, or one socket error, ends the measurement and is named."""
    assert a_run().sound("ours").per_second == 1000
    with pytest.raises(Worthless, match=f"ours: 1 {problem}"):
        a_run(**{problem: 1}).sound("ours")


def test_a_message_that_is_not_acknowledged_is_no_figure() -> None:
    """An open-loop push answered anything but 204, or not at all, ends the measurement."""
    answers = openloop.Answers([0.1], Counter({204: 1}))
    assert answers.sound("half load").percentile(0.99) == 0.1
    with pytest.raises(Worthless, match=r"half load.*\{503: 2\}"):
        openloop.Answers([0.1], Counter({204: 1, 503: 2})).sound("half load")


def test_the_ratio_is_taken_round_by_round() -> None:
    """Round 1 of ours is compared with round 1 of the others, and so on."""
    runs = {"ours": [a_run(requests=500), a_run(requests=900)], "ceiling": [a_run(), a_run(requests=500)]}
    rows = {row.name: row for row in throughput.rows(runs, throughput.SETTINGS[1])}
    ratio = rows["ours / ceiling at 80/40 ms, 256 connections"]
    assert list(ratio.values) == [0.5, 1.8]
    assert ratio.target == Target("≥", 0.55)


def test_the_bound_of_the_connections_is_one_write_for_each() -> None:
    """256 requests that wait for 80 ms each are answered 3,200 times a second; without latency there is no such bound."""
    assert throughput.SETTINGS[1].bound == 3200
    assert throughput.SETTINGS[0].bound is None


def test_the_median_meets_a_target_or_does_not() -> None:
    """The row says what was wanted, and in bold when it was missed."""
    good = Figure("a", [0.5, 0.7, 0.6], ".2f", Target("≥", 0.6))
    assert good.cells() == ("a", "0.50", "0.60", "0.70", "≥ 0.60", "yes")
    assert Figure("a", [1, 2, 9], target=Target("≤", 1)).cells()[-2:] == ("≤ 1", "**no**")
    assert Figure("a", [1]).cells()[-2:] == ("", "")


def test_question_and_command_stand_in_the_first_row_of_a_part() -> None:
    """One table for all parts."""
    text = figures.figures_table({("q", "c"): [Figure("a", [1]), Figure("b", [2])]})
    assert text.splitlines()[2:] == ["| q | `c` | a | 1 | 1 | 1 |  |  |", "|  |  | b | 2 | 2 | 2 |  |  |"]


def test_an_open_loop_push_is_a_message_of_its_own() -> None:
    """The worker reads it; its user and its id are those of no other push, of wrk's neither."""
    found = []
    for run, number in ((0, 0), (0, 1), (1, 0)):
        head, _, body = openloop.message(run, number).partition(b"\r\n\r\n")
        assert head.endswith(b"Content-Length: %d" % len(body))
        delivery = envelope.decode(body)
        content = read(delivery.data, delivery.attributes)
        assert isinstance(content, Content)
        found.append((delivery.message_id, content.key))
    assert len(set(found)) == 3
    assert found[1] == ("100999000000001", 100999000000001)


def test_a_look_counts_for_the_innermost_function_of_a_stage() -> None:
    """An unknown function counts for its caller, the longest rule decides, and a thread that waits is left out."""
    packages = "/venv/lib/python3.11/site-packages"
    main = [f"run ({packages}/uvloop/__init__.py:92)", f"_push ({ROOT}/worker/ingest/http/app.py:158)"]
    assert profile.stage([*main, f"content_of ({ROOT}/worker/ingest/transaction.py:38)"]) == "decode envelope and message"
    assert profile.stage([*main, f"handle ({ROOT}/worker/ingest/transaction.py:60)"]) == "transaction: plan"
    assert profile.stage([*main, "search (/usr/lib/python3.11/bisect.py:1)"]) == "take the push, read its body"
    assert profile.stage([*main, "_worker (/usr/lib/python3.11/concurrent/futures/thread.py:81)"]) is None
    assert profile.stage(["something (<frozen x>:1)"]) == profile.OTHER


def test_a_stage_costs_its_share_of_its_threads_cpu() -> None:
    """Four seconds of a thread over 1,000 messages, three quarters of the looks: 3,000 µs for each message."""
    loop, decode = "event loop: poll, read, call back", "decode envelope and message"
    looks = Counter({("thread (7): gcs_0", loop): 1, ("thread (7): gcs_0", decode): 3, ("thread (8): gone", loop): 5})
    assert profile.costs(looks, {7: 1.0}, {7: 5.0}, 1000) == {("gcs", loop): 1000.0, ("gcs", decode): 3000.0}


def test_every_module_of_a_stage_exists() -> None:
    """A module of ours that was renamed would silently count for its caller."""
    for rules in profile.STAGES.values():
        for rule in rules:
            if rule.startswith(("worker/", "publisher/")):
                assert (ROOT / rule.partition(":")[0]).exists(), rule


def test_every_part_has_its_place_in_the_readme() -> None:
    """Each part says its question and is described; so are the tables that the scripts write."""
    text = figures.README.read_text()
    for name in part.NAMES:
        assert part.load(name).QUESTION
        assert f"\n### {name}\n" in text
    for name in ("everything", "soak", "profile before", "profile after"):
        begin, end = figures.markers(name)
        assert 0 < text.find(begin) < text.find(end)


def test_a_comparison_names_only_parts_that_there_are() -> None:
    """A mistyped part ends before anything is started."""
    assert compare._parts("throughput,start") == ["throughput", "start"]
    with pytest.raises(SystemExit):
        compare.main(["HEAD", "--parts", "throughptu"])


def test_without_wrk_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the command to install it, before anything is started."""
    monkeypatch.setenv("PATH", "")
    assert everything.main([]) == 2
    assert "apt-get install wrk" in capsys.readouterr().err


def test_a_worthless_part_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit code 1, and the table stays as it was."""
    readme = tmp_path / "README.md"
    begin, end = figures.markers("everything")
    readme.write_text(f"{begin}\nold\n{end}\n")
    monkeypatch.setattr(everything, "README", readme)
    monkeypatch.setattr(wrk, "find", lambda: "wrk")
    monkeypatch.setattr(part, "NAMES", ("writer",))
    module = part.load("writer")

    def lost(scale: part.Scale) -> list[Figure]:
        raise Worthless("something was lost")

    monkeypatch.setattr(module, "measure", lost)
    assert everything.main([]) == 1
    assert readme.read_text() == f"{begin}\nold\n{end}\n"
    monkeypatch.setattr(module, "measure", lambda scale: [Figure("a", [1])])
    assert everything.main([]) == 0
    assert "| a | 1 | 1 | 1 |" in readme.read_text()
