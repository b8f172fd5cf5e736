"""What can go wrong outside a message's own content, each with the operator's next step.

    PublisherError
    |-- UsageError              nothing was sent: the command line, a setting or the input file is wrong
    `-- DeliveryError           one message was not accepted
        |-- TopicNotFoundError      * the topic does not exist
        |-- TopicUnusableError      * the topic takes nothing at present: its key, its policy
        |-- NotPermittedError       * these credentials may not publish, or there are none
        |-- UnreachableError        * no answer in time; whether the message was accepted is unknown
        |-- RefusedError              the server answered, and the answer was no
        |-- BusyError                 the gateway takes no more just now; it was not sent
        `-- NotConfirmedError         given up waiting; whether the message was accepted is unknown

The starred ones would meet every other message as well: a load stops at the first (`fatal`).
"""

from typing import ClassVar


class PublisherError(Exception):
    """Any failure this package reports on purpose; every other exception is a bug."""


class UsageError(PublisherError):
    """The command line, a setting or the input file is wrong; nothing was sent."""


class DeliveryError(PublisherError):
    """A message was not accepted, or is not known to have been.

    Attributes:
        fatal: every other message would fail in the same way.
        code: a short name for summaries and scripts.
        unknown: the message may have been accepted all the same.
    """

    fatal: ClassVar[bool] = False
    code: ClassVar[str] = "not_accepted"
    unknown: ClassVar[bool] = False


class TopicNotFoundError(DeliveryError):
    """The topic does not exist."""

    fatal = True
    code = "topic_not_found"


class TopicUnusableError(DeliveryError):
    """The topic is there and takes no message at present, for example because its encryption key is disabled."""

    fatal = True
    code = "topic_unusable"


class NotPermittedError(DeliveryError):
    """The credentials are missing or may not publish to the topic."""

    fatal = True
    code = "not_permitted"


class UnreachableError(DeliveryError):
    """The server did not answer within the time limit, however often it was asked."""

    fatal = True
    code = "unreachable"
    unknown = True


class RefusedError(DeliveryError):
    """The server answered that it does not take this message."""

    code = "refused"


class BusyError(DeliveryError):
    """The gateway is stopping, or as much is in flight as it allows; the message was not sent."""

    code = "busy"


class NotConfirmedError(DeliveryError):
    """It was given up before the server answered."""

    code = "not_confirmed"
    unknown = True
