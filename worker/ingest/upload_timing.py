"""When the next upload begins: at once, or with the next messages of the senders that were just answered. Pure.

A sender whose window is full, as a subscription's or a load generator's is, sends its next message when one is answered.
Where an upload begins the moment the one before it ends, these messages come in while it is under way and wait for its end:
there are two crowds of senders that take turns, and each is answered once in two uploads. Where the upload waits until the
crowd is back, there is one crowd, answered once in an upload and a return. That is the better of the two while

    return < upload

and both are measured here. Senders that come at their own times do not return at once, so an upload does not wait for them.
"""

from typing import Final

_MOST: Final = 0.9
"""When this share of the senders just answered is back, the rest are not waited for."""
_SWAY: Final = 0.2
"""How much one return counts beside those before it."""


class Pace:
    """Times are in seconds, moments on the event loop's clock. The replicator, on the event loop, is all that touches it."""

    def __init__(self) -> None:
        self._upload = 0.0  # what the lesser of the last two uploads took
        self._last_upload = 0.0
        self._return, self._crowd = 0.0, 1.0  # what a return takes, and of how many senders
        self._answered = 0
        self._answered_at = 0.0
        self._away = 0.0  # how many of those answered last are not back, less the few that are not waited for

    @property
    def worth_waiting(self) -> bool:
        """Whether an upload waits until the senders answered last are back."""
        return self._away > 0 and self._away * self._return / self._crowd < self._upload

    @property
    def back_by(self) -> float:
        """Until when those answered last are waited for: longer would cost more than an upload without them."""
        return self._answered_at + self._upload

    def uploaded(self, seconds: float) -> None:
        """An upload ended well. A single one that took long says nothing about the next: the bucket or we may have slept."""
        self._upload, self._last_upload = min(seconds, self._last_upload), seconds

    def answered(self, count: int, now: float) -> None:
        """So many messages were answered."""
        if self._away > 0:
            self._returned(now)  # or later
        self._answered, self._answered_at, self._away = count, now, _MOST * count

    def came(self, count: int, now: float) -> None:
        """So many messages were committed."""
        if self._away > 0:
            self._away -= count
            if self._away <= 0:
                self._returned(now)

    def _returned(self, now: float) -> None:
        seconds = min(now - self._answered_at, 2 * self._upload)  # how much later than that says nothing
        self._return += _SWAY * (seconds - self._return)
        self._crowd += _SWAY * (self._answered - self._crowd)
