"""The readers of `values` as click's types: one for each kind of thing that an option or an argument holds."""

from collections.abc import Callable
from typing import Any, Final

import click

from publisher import values


class Read(click.ParamType[Any]):
    """A type whose values are read by a function of `values`; a wrong text ends with what it must be.

    Args:
        name: Stands for the value in a help text that names no other metavar.
        read: Returns the value of a text, or raises `values.Wrong`.
    """

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a text that was typed; a default that is no text is a value already."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except values.Wrong as error:
            self.fail(str(error), param, ctx)


def whole(low: int, high: int = values.MAX_INTEGER) -> Read:
    """Return the type of whole numbers within limits."""
    return Read("number", values.whole(low, high))


def seconds(high: float) -> Read:
    """Return the type of waits up to a bound, in seconds (INV-7)."""
    return Read("seconds", values.seconds(high))


def _utc(text: str) -> str:
    return values.rfc3339(values.moment(text))


USER_ID: Final = Read("user id", values.user_id)
SUBJECT: Final = Read("subject", values.subject)
MESSAGE_ID: Final = Read("message id", values.message_id)
MOMENT: Final = Read("time", values.moment)
UTC_TEXT: Final = Read("time", _utc)
"""A moment, as the text that the service's paths take."""
WORD: Final = Read("word", values.word)
PATH: Final = Read("path", values.path)
ADDRESS: Final = Read("url", values.address)
