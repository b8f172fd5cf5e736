"""What the integration tests share: real processes, ended by the fixture that started them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.gcs_process import FakeGcs


@pytest.fixture
def fake_gcs(tmp_path: Path) -> Iterator[FakeGcs]:
    """A fake GCS of the test's own, with the bucket `users`."""
    with FakeGcs(tmp_path / "gcs", buckets=("users",)) as gcs:
        yield gcs
