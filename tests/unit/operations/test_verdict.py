"""The verdict: what an operator reads first, for each state and each stall."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.operations import verdict
from worker.operations.lease import Status as Lease
from worker.operations.verdict import Facts, judge, logs_command
from worker.telemetry.status_format import Held, Status
from worker.telemetry.trouble import STALLS, Stall

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
URL = "http://127.0.0.1:8080"


def status(**changes: Any) -> Status:
    """A status of a service that serves well."""
    made: dict[str, Any] = {
        "state": "serving",
        "version": "0.1.0",
        "revision": "users-00001",
        "instance": "i",
        "engine": "sqlite",
        "store": "gs://acme-users/prod",
        "started_at": NOW - timedelta(hours=1),
        "now": NOW,
        "state_since": NOW - timedelta(minutes=50),
        "epoch": 7,
        "held": Held(messages=0, messages_max=900, bytes=0, bytes_max=64, queued=0),
        "oldest_unconfirmed_seconds": 0.0,
        "acknowledged": {},
        "trouble": [],
    }
    return Status(**(made | changes))


def lease(**changes: Any) -> Lease:
    """A lease that is held and was renewed just now."""
    made: dict[str, Any] = {
        "store": "gs://acme-users/prod",
        "state": "held",
        "holder": "h",
        "revision": "users-00001",
        "epoch": 7,
        "live": "generations/0000000000000007",
        "since": NOW,
        "last_renewal": NOW - timedelta(seconds=2),
        "successor": None,
        "successor_revision": None,
        "successor_asked": None,
    }
    return Lease(**(made | changes))


def stall(action: str, text: str = "because") -> Stall:
    """A stall of a minute."""
    return Stall(action=action, text=text, since=NOW - timedelta(minutes=1), count=9)


def test_a_service_that_serves() -> None:
    """Serving, since when it began to."""
    found = judge(Facts(url=URL, now=NOW, status=status()))
    assert (found.kind, found.since) == ("serving", NOW - timedelta(minutes=50))


@pytest.mark.parametrize("action", STALLS)
def test_every_stall_has_words_and_a_next_step(action: str) -> None:
    """Each action that is collected as a stall is explained, with a command to run."""
    found = verdict.explain(stall(action), "gs://acme-users/prod")
    assert found.title
    assert found.step
    assert found.command


def test_the_gravest_stall_is_the_cause() -> None:
    """A full disk explains what the bucket does not take, and not the other way round."""
    found = judge(Facts(url=URL, now=NOW, status=status(trouble=[stall("disk.full"), stall("replication.retry")])))
    assert found.kind == "stuck"
    assert "disk" in found.title
    assert found.since == NOW - timedelta(minutes=1)


def test_missing_rights_have_a_step_of_their_own() -> None:
    """A 403 is no outage that passes: the command gives the account its role on this bucket."""
    found = judge(Facts(url=URL, now=NOW, status=status(trouble=[stall("replication.retry", "googleapi: Error 403: …")])))
    assert "gs://acme-users " in found.command
    assert "roles/storage.objectUser" in found.command


def test_a_stall_that_keeps_no_message_is_no_verdict() -> None:
    """A service that confirms is serving, though its lease cannot be renewed now or certificates grow old."""
    trouble = [stall("lease.retry"), stall("sender.certificates_retry")]
    assert judge(Facts(url=URL, now=NOW, status=status(trouble=trouble))).kind == "serving"
    assert judge(Facts(url=URL, now=NOW, status=status(state="standby", trouble=trouble))).kind == "stuck"


def test_a_silent_wait_is_stuck_too() -> None:
    """What has waited ten seconds for the bucket is stuck, whether or not a reason was logged."""
    found = judge(Facts(url=URL, now=NOW, status=status(oldest_unconfirmed_seconds=11.0)))
    assert (found.kind, found.since) == ("stuck", NOW - timedelta(seconds=11))


def test_standing_by_starting_and_stopping() -> None:
    """None of them is stuck."""
    for changes, title in (
        ({"state": "standby", "epoch": None}, "Standing by"),
        ({"state": "standby", "epoch": 8}, "Starting"),
        ({"state": "draining"}, "Stopping"),
    ):
        found = judge(Facts(url=URL, now=NOW, status=status(**changes)))
        assert (found.kind, found.title) == ("standing by", title)


def test_an_engine_without_a_lease_serves_as_well() -> None:
    """Epoch, generation and lease may be unknown: many instances on one database are no trouble."""
    many = status(engine="postgresql", epoch=None, generation=None, lease_age_seconds=None, oldest_unconfirmed_seconds=None)
    assert judge(Facts(url=URL, now=NOW, status=many)).kind == "serving"


def test_a_dead_writer_is_told_from_a_wrong_address() -> None:
    """By the lease: released, or not renewed for long, there is no writer; renewed just now, there is one elsewhere."""
    silent: dict[str, Any] = {"url": URL, "now": NOW, "problem": "http://127.0.0.1:8080 does not answer"}
    gone = judge(Facts(**silent, lease=lease(last_renewal=NOW - timedelta(minutes=3))))
    assert (gone.title, gone.since) == ("There is no writer", NOW - timedelta(minutes=3))
    assert "users-00001" in gone.cause
    released = judge(Facts(**silent, lease=lease(state="released")))
    assert "released at epoch 7" in released.cause
    alive = judge(Facts(**silent, lease=lease()))
    assert alive.title == "The service does not answer"
    assert "SERVICE_URL" in alive.step
    unknown = judge(Facts(**silent, lease_problem="no credentials"))
    assert "no credentials" in unknown.cause
    assert {found.kind for found in (gone, released, alive, unknown)} == {"stuck"}


def test_a_refusal_is_no_verdict() -> None:
    """A service that answers 403 is not called stuck: nothing is known of it."""
    found = judge(Facts(url=URL, now=NOW, problem="the service answered 403", refused=True))
    assert (found.kind, found.since) == ("not known", None)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        (URL, "python -m worker serve"),
        (
            "https://users-worker-123456789.europe-west1.run.app",
            "gcloud run services logs read users-worker --region=europe-west1 --limit=50",
        ),
        ("https://users-worker-abcdef-ew.a.run.app", "gcloud run services logs read users-worker --limit=50"),
        ("https://users.acme.example", "python -m worker doctor"),
    ],
)
def test_the_command_fits_where_the_service_runs(url: str, command: str) -> None:
    """Cloud Run's own addresses name the service and the region."""
    assert logs_command(url) == command
