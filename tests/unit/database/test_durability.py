"""Which parameters of a server keep what it has committed, and which do not."""

import pytest

from worker.database.postgresql import Durability


@pytest.mark.parametrize(
    ("synchronous_commit", "fsync", "standbys", "wrong"),
    [
        ("on", "on", "", None),
        ("on", "on", "ANY 1 (a, b)", None),
        ("remote_apply", "on", "ANY 1 (a, b)", None),
        ("local", "on", "", None),
        ("local", "on", "ANY 1 (a, b)", "synchronous_commit is local"),
        ("off", "on", "", "synchronous_commit is off"),
        ("on", "off", "", "fsync is off"),
    ],
)
def test_a_server_that_would_lose_what_it_has_acknowledged(
    synchronous_commit: str, fsync: str, standbys: str, wrong: str | None
) -> None:
    """INV-1: with `local` a COMMIT does not wait for the standby, and the one that takes over lacks the message."""
    found = Durability(
        version="18.0",
        synchronous_commit=synchronous_commit,
        fsync=fsync,
        full_page_writes="on",
        standbys=standbys,
        read_only="off",
    ).unsafe()
    assert found is None if wrong is None else wrong in (found or "")
