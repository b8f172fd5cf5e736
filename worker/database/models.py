"""The worker's own tables, as Peewee models; those of events are declared beside the events (worker/events).

A model carries no database: each query is executed on the one it is given.
"""

from collections.abc import Sequence
from typing import Final

from peewee import BigIntegerField, BlobField, Database, Model, TextField

from worker.events.declaration import Reason

CONFLICT: Final = "conflict"
"""The reason of a rejection whose key is there with other content."""
NOT_STORABLE: Final = "not_storable"
"""The reason of a rejection that keeps to the format, and whose row the database refuses all the same."""
REASONS: Final = (*Reason, CONFLICT, NOT_STORABLE)
"""Why a message is kept as a rejection. The list is closed: these codes are stored and alerted on."""
DISCARDED: Final = "discarded"
"""The resolution of a rejection that an operator has given up."""


class Receipt(Model):
    """One per handled message, written in the transaction of its effect (INV-3). Times are in milliseconds.

    `subject` is whose data the message is, as a text; null if it is no person's, or the person was erased.
    """

    message_id = TextField(primary_key=True)
    subject = TextField(null=True)
    outcome = TextField()
    publish_time = BigIntegerField()
    processed_at = BigIntegerField()
    epoch = BigIntegerField()

    class Meta:
        table_name = "receipts"


class Rejection(Model):
    """A message that had no effect, kept whole with the reason. Times are in milliseconds.

    `detail` names fields and no values; `attributes` is JSON, and so is `stored`, the row that a conflict met.
    A large message's `data` is empty, and `body` names the object that holds its `bytes` bytes (bodies.py). A discarded one
    has neither. `about` is the subject that the message states, as far as it can be read.
    It is open while `resolved_at` is null; `resolution` is then what the retry did, or `discarded`.
    """

    message_id = TextField(primary_key=True)
    reason = TextField()
    detail = TextField()
    data = BlobField()
    attributes = TextField()
    publish_time = BigIntegerField()
    received_at = BigIntegerField()
    resolved_at = BigIntegerField(null=True)
    stored = TextField(null=True)
    delivery_attempt = BigIntegerField(null=True)
    resolution = TextField(null=True)
    body = TextField(null=True)
    bytes = BigIntegerField(null=True)
    about = TextField(null=True)

    class Meta:
        table_name = "rejections"


class Erased(Model):
    """A subject that was erased: no message about it has an effect. `erased_at` is in milliseconds."""

    subject = TextField(primary_key=True)
    erased_at = BigIntegerField()

    class Meta:
        table_name = "erased"


class Version(Model):
    """The version of a row that an event wrote whose newest version wins, and the message that brought it.

    `row` is the table's name, a slash, and the key.
    """

    row = TextField(primary_key=True)
    version = BigIntegerField()
    message_id = TextField()

    class Meta:
        table_name = "versions"


Connection = Database
"""An open database that queries are executed on, whichever engine it is."""


def columns(model: type[Model]) -> Sequence[str]:
    """The names of a model's columns, in order."""
    names: Sequence[str] = model._meta.sorted_field_names
    return names
