"""What the main path tells of itself, once for each group and never for each message. This listener ignores all of it."""

from collections.abc import Sequence

from worker.errors import RequestError
from worker.group import Group


class Observer:
    """Told of groups and refusals; metrics.py listens. Times are of `time.monotonic`, as the event loop's are."""

    def committed(self, group: Group, began: float) -> None:
        """A group's COMMIT has returned; its transaction was begun at `began`."""

    def acknowledged(self, groups: Sequence[Group], asked: float) -> None:
        """Groups were confirmed and answered; the confirmation was begun at `asked`."""

    def unconfirmed(self) -> None:
        """A confirmation did not come, and is asked for again."""

    def gave_up(self, group: Group) -> None:
        """A group was answered 503: it was not confirmed within the hold limit."""

    def refused(self, error: RequestError) -> None:
        """A request was answered with an error."""

    def broke(self) -> None:
        """A request met a defect and was answered 500."""
