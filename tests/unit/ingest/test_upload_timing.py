"""When the next upload begins: at once, or with the next messages of the senders that were just answered."""

import math

from worker.ingest.upload_timing import Pace


def paced(*, upload: float, returned_in: float, crowd: int = 100) -> Pace:
    """A pace that has seen many crowds of that size be answered and come back, and has just answered one more."""
    pace = Pace()
    for number in range(50):
        pace.uploaded(upload)
        pace.answered(crowd, now=float(number))
        pace.came(crowd, now=number + returned_in)
    pace.uploaded(upload)
    pace.answered(crowd, now=50.0)
    return pace


def test_nothing_is_waited_for_before_anything_is_known() -> None:
    """The first uploads of a process begin at once."""
    pace = Pace()
    assert not pace.worth_waiting
    pace.uploaded(0.08)
    assert not pace.worth_waiting


def test_senders_that_return_at_once_are_waited_for() -> None:
    """10 ms of returning are less than an upload of 80; when most are back, the wait is over."""
    pace = paced(upload=0.08, returned_in=0.01)
    assert pace.worth_waiting
    assert math.isclose(pace.back_by, 50.08)
    pace.came(89, now=50.005)
    assert pace.worth_waiting
    pace.came(1, now=50.006)
    assert not pace.worth_waiting


def test_senders_that_come_at_their_own_times_are_not_waited_for() -> None:
    """A hundred that take longer to come than an upload are no crowd that returns."""
    assert not paced(upload=0.08, returned_in=0.1).worth_waiting


def test_a_larger_crowd_takes_longer_to_return() -> None:
    """Two crowds are made one only if that one is back in time."""
    pace = paced(upload=0.08, returned_in=0.02)
    pace.came(100, now=50.02)
    pace.answered(300, now=60.0)
    assert pace.worth_waiting
    pace.came(300, now=60.02)
    pace.answered(900, now=70.0)
    assert not pace.worth_waiting


def test_one_upload_that_took_long_is_no_reason_to_wait_as_long() -> None:
    """After this process has slept for an hour no sender is held for another; two such uploads in a row are believed."""
    pace = paced(upload=0.08, returned_in=0.01)
    pace.uploaded(3600.0)
    pace.answered(100, now=5000.0)
    assert math.isclose(pace.back_by, 5000.08)
    pace.uploaded(1.04)
    assert math.isclose(pace.back_by, 5001.04)


def test_a_crowd_that_never_came_back_counts_as_slow() -> None:
    """At its next answer at the latest it is known to have taken that long."""
    pace = Pace()
    for number in range(50):
        pace.uploaded(0.08)
        pace.answered(10, now=float(number))
    assert not pace.worth_waiting
