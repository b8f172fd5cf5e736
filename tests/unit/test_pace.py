"""When the next upload begins: at once, or with those who are about to be answered."""

import math

from worker.pace import Pace


def paced(*, upload: float, read: float, returned_in: float, crowd: int = 100) -> Pace:
    """A pace that has seen many crowds of that size be answered and come back."""
    pace = Pace()
    for number in range(50):
        pace.uploaded(upload)
        pace.answered(crowd, read, now=float(number))
        pace.came(crowd, now=number + returned_in)
    return pace


def test_nothing_is_waited_for_before_anything_is_known() -> None:
    """The first uploads of a process begin at once, also while its first lease read is under way."""
    pace = Pace()
    assert not pace.worth_waiting(1)
    pace.uploaded(0.08)
    assert not pace.worth_waiting(1)


def test_senders_that_return_at_once_are_waited_for() -> None:
    """40 ms of reading and 10 of returning are less than an upload of 80."""
    assert paced(upload=0.08, read=0.04, returned_in=0.01).worth_waiting(100)


def test_senders_that_come_at_their_own_times_are_not_waited_for() -> None:
    """A hundred that take 80 ms to come are no crowd that returns."""
    assert not paced(upload=0.08, read=0.04, returned_in=0.08).worth_waiting(100)


def test_a_larger_crowd_takes_longer_to_return() -> None:
    """Two crowds are made one only if that one is back in time."""
    pace = paced(upload=0.08, read=0.04, returned_in=0.02)
    assert pace.worth_waiting(150)
    assert not pace.worth_waiting(250)


def test_those_still_away_are_part_of_the_crowd() -> None:
    """They were answered last, and come back to the one crowd as well."""
    pace = paced(upload=0.08, read=0.04, returned_in=0.02)
    pace.answered(100, 0.04, now=100.0)
    assert pace.worth_waiting(50)
    assert not pace.worth_waiting(150)
    pace.came(100, now=100.02)
    assert pace.worth_waiting(150)


def test_a_few_that_stayed_away_are_soon_outweighed() -> None:
    """What one sender did before a pause says little about a hundred after it."""
    pace = paced(upload=0.08, read=0.04, returned_in=0.01)
    pace.answered(1, 0.04, now=100.0)
    pace.answered(100, 0.04, now=200.0)
    pace.came(100, now=200.01)
    assert pace.worth_waiting(50)


def test_a_bucket_whose_reads_take_longer_than_its_writes_is_never_waited_for() -> None:
    """The next upload has ended by then."""
    pace = paced(upload=0.02, read=0.04, returned_in=0.001)
    assert not pace.worth_waiting(1)
    assert pace.back_by < 49.0  # the moment of the last answer: there is nothing left to wait


def test_one_upload_that_took_long_is_no_reason_to_wait_as_long() -> None:
    """After this process has slept for an hour nobody is held for another; two such uploads in a row are to be believed."""
    pace = paced(upload=0.08, read=0.04, returned_in=0.01)
    pace.uploaded(3600.0)
    pace.answered(100, 0.04, now=5000.0)
    assert math.isclose(pace.back_by, 5000.04)
    pace.uploaded(1.04)
    assert math.isclose(pace.back_by, 5001.0)
    pace.uploaded(0.08)
    assert math.isclose(pace.back_by, 5000.04)


def test_most_of_those_answered_are_enough() -> None:
    """A sender that does not come back holds nobody up."""
    pace = Pace()
    pace.uploaded(0.08)
    pace.uploaded(0.08)
    pace.answered(100, 0.03, now=7.0)
    assert not pace.back
    pace.came(89, now=7.01)
    assert not pace.back
    assert math.isclose(pace.back_by, 7.05)
    pace.came(1, now=7.02)
    assert pace.back


def test_a_crowd_that_never_came_back_counts_as_slow() -> None:
    """At its next answer at the latest it is known to have taken that long."""
    pace = Pace()
    for number in range(50):
        pace.uploaded(0.08)
        pace.answered(10, 0.01, now=float(number))
    assert not pace.worth_waiting(10)
