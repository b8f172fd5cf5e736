"""`worker recover`: what it settles before anything is changed, and what it does not let break off afterwards."""

import errno
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from publisher.command_line import Options
from worker.cli import recover
from worker.cli.main import main
from worker.cli.recover import _earlier, _Undone
from worker.database.comparison import Undone
from worker.errors import LeaseHeld, LeaseLost, QueueUnavailable, RestoreFailed
from worker.operations.recovery import Plan, Recovery, forgotten
from worker.operations.restore import Restored
from worker.tasks import plain

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def plan(*messages: str) -> Plan:
    """A recovery that undoes these."""
    state = Restored(
        file="f",
        generation="g",
        txid=1,
        time=NOW,
        bytes=1,
        rows={"users": 1},
        receipts=1,
        rejections=0,
        open_rejections=0,
        last_message=None,
        last_message_at=None,
        left_out=[],
    )
    found = Undone(
        messages=list(messages),
        outcomes={},
        retried=[],
        discarded=[],
        oldest_publish_time=None,
        newest_publish_time=None,
    )
    return Plan(state, state, found)


def test_the_ids_are_written_before_and_again_after(tmp_path: Path) -> None:
    """What was acknowledged until the hand-over is in it as well."""
    file = _Undone(tmp_path / "undone.txt", plan("m1"))
    assert file.path.read_text() == "m1\n"
    file.write(plan("m1", "m2"))
    assert file.path.read_text() == "m1\nm2\n"


@pytest.mark.parametrize("name", ["there.txt", "no/folder/x.txt"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_changed(tmp_path: Path, name: str) -> None:
    """With what to do, and what stands there stays."""
    (tmp_path / "there.txt").write_text("mine")
    with pytest.raises(RestoreFailed, match="name a new file with --undone"):
        _Undone(tmp_path / name, plan("m1"))
    assert (tmp_path / "there.txt").read_text() == "mine"


def test_a_file_that_is_lost_meanwhile_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recovery is made by then, and its replay is still to come."""
    folder = tmp_path / "folder"
    folder.mkdir()
    file = _Undone(folder / "undone.txt", plan("m1"))
    file.path.unlink()
    folder.rmdir()
    file.write(plan("m1", "m2"))
    assert "as of the plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("planned", "found", "to"),
    [
        (NOW, NOW - timedelta(hours=1), NOW - timedelta(hours=1)),
        (NOW, NOW + timedelta(hours=1), NOW),
        (None, NOW, NOW),
        (None, None, None),
        ("snapshot", "snapshot", "snapshot"),
        (NOW, "snapshot", "snapshot"),
    ],
)
def test_what_was_acknowledged_until_the_hand_over_is_replayed_too(
    planned: datetime | str | None, found: datetime | str | None, to: datetime | str | None
) -> None:
    """The point found under the lease counts, if it is earlier; there may have been none before."""
    assert _earlier(planned, found) == to


@pytest.mark.parametrize(("planned", "to"), [(NOW, NOW), ("snapshot", "snapshot")])
def test_a_point_that_cannot_be_looked_up_again_is_the_planned_one(
    planned: datetime | str, to: datetime | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recovery is made by then, so an outage must not keep its replay from being made as well."""

    async def down(*_: object) -> None:
        raise QueueUnavailable("no answer")

    monkeypatch.setattr(recover, "_point", down)
    options = Options(replay_from=None)
    arguments: Any = (None, options, plan("m1"), object())
    assert recover._replay_to_after(*arguments, planned=planned) == to
    assert "the planned one is taken: no answer" in capsys.readouterr().err
    with pytest.raises(QueueUnavailable):
        recover._replay_to_after(*arguments, planned=None)


def test_a_lost_lease_is_no_success() -> None:
    """A service ends with 0 when another one took over; a recovery that was not made must not."""

    async def lost() -> None:
        raise LeaseLost("held by another")

    with pytest.raises(LeaseHeld, match=r"held by another.*run it again") as raised:
        recover._made(lost())
    assert raised.value.exit_code == 1


def test_a_full_disk_is_no_traceback() -> None:
    """It is said where room is needed, and how to name another place."""

    async def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RestoreFailed, match=r"No space left on device.*TMPDIR"):
        recover._made(full())


def test_what_receipts_no_longer_tell_is_said() -> None:
    """A state older than any receipt: what is undone is more than what is listed."""
    wanted = plan().wanted
    assert forgotten(wanted, now=NOW + timedelta(days=31), receipt_days=32) is None
    said = forgotten(wanted, now=NOW + timedelta(days=33), receipt_days=32)
    assert said is not None
    assert "neither counted nor listed" in said


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "soon"])
def test_each_wait_is_bounded(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """INV-7: of `replay` and of the replay of a recovery alike."""
    for command in (["replay", "--from", "1h"], ["recover", "--at", "1h"]):
        with pytest.raises(SystemExit):
            main([*command, "--settle", text], {})
        assert capsys.readouterr().err.startswith("error: --settle: must be seconds, more than 0 and at most 3600\n")


def test_the_one_error_of_a_group_is_reported() -> None:
    """A loss before anything it caused; else the first."""
    lost, other = LeaseLost("lost"), RestoreFailed("other")
    assert plain(ExceptionGroup("g", [other, ExceptionGroup("h", [lost])]), LeaseLost) is lost
    assert plain(ExceptionGroup("g", [ExceptionGroup("h", [other])]), LeaseLost) is other
    assert plain(other, LeaseLost) is other


def test_a_no_changes_nothing_and_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is printed once, before the question."""

    class Planned:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        async def plan(self) -> Plan:
            return plan("m1")

    monkeypatch.setattr(recover, "Recovery", Planned)
    monkeypatch.setattr("sys.stdin", Options(isatty=lambda: True, readline=lambda: "n\n"))
    options = Options(undone=None, replay=False, replay_from=None, at=NOW, dry_run=False, yes=False, json=False)
    settings: Any = None
    assert recover._recover(settings, options) == 1
    printed = capsys.readouterr()
    assert printed.out.count("wanted ") == 1
    assert printed.err.endswith("nothing was changed\n")


class Lease:
    """What a recovery reads of its lease once it has raised."""

    def __init__(self, held_epoch: int | None, live: str) -> None:
        self.held_epoch, self.live = held_epoch, live


@pytest.mark.parametrize(
    ("lease", "said", "left"),
    [
        (None, "nothing was changed", False),
        (Lease(None, "before"), "nothing was changed", False),
        (Lease(None, "after"), "the earlier state is live all the same; {file} has the ids of the undone messages", True),
        (Lease(7, "before"), "it is not known which state is live: look with `worker replica`; {file} has", True),
    ],
    ids=["before the switch was tried", "released before the switch", "after the switch", "not released"],
)
def test_a_recovery_that_breaks_off_says_what_it_has_left(
    lease: Any, said: str, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only where nothing was changed is it said, and then the file of ids is gone, and the list in the bucket as well."""
    deleted = []

    async def delete(*_: object) -> None:
        deleted.append("undone")

    monkeypatch.setattr(recover, "delete_undone", delete)
    monkeypatch.setattr(recover, "Bucket", lambda *_: Closed())
    settings: Any = Options(bucket="bucket", prefix="store")
    recovery = Recovery(settings, NOW, print)
    recovery._lease, recovery._live_before = lease, "before"
    file = _Undone(tmp_path / "undone.txt", plan("m1"))
    recover._broken_off(settings, recovery, file, NOW)
    assert capsys.readouterr().err.startswith(said.format(file=file.path))
    assert (file.path.exists(), bool(deleted)) == (left, not left)


class Closed:
    """A bucket that is only closed."""

    def close(self) -> None:
        """See `Bucket.close`."""
