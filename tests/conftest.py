"""What every test finds."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import warm_python

if TYPE_CHECKING:
    from tests.engines import Databases, Made

# A shell that starts something in the background lets it ignore Ctrl-C, and so do the processes that this one starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

warm_python.install()


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Databases on a PostgreSQL server, which is started for the first test that asks for it."""
    from tests.engines import Databases

    made = Databases()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.slow, pytest.mark.postgresql])])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    """Makes databases of either engine: a test that uses it runs over both."""
    from tests.engines import SqlitePlace

    with contextlib.ExitStack() as made:
        if request.param == "postgresql":
            databases: Databases = request.getfixturevalue("databases")
            yield lambda catalog: made.enter_context(databases.place(catalog))
        else:
            numbers = itertools.count(1)
            yield lambda catalog: SqlitePlace(tmp_path / f"users{next(numbers)}.db", catalog)
