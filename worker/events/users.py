"""Users: created, corrected, deleted. `users` is, column for column, the table of the service that this one replaces.

A user is created once: `user.created` for a user that is there with other content is a conflict. A correction is a
`user.updated`, and of two of these the one published later wins, in whatever order they come.
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from peewee import BigIntegerField, Model, TextField

from worker.events.declaration import Event

MIN_USER_ID: Final = 1
"""Smallest user id: 0 and negative numbers are what an unset or overflowed counter looks like."""
MAX_USER_ID: Final = 2**63 - 1
"""Largest user id: what SQLite's and PostgreSQL's 64-bit integer columns hold."""
MAX_CREATED_AT: Final = 253_402_300_799
"""Latest creation time, in epoch seconds: the end of 9999. Milliseconds sent by mistake lie beyond it."""

UserId = Annotated[int, Meta(ge=MIN_USER_ID, le=MAX_USER_ID)]
Seconds = Annotated[int, Meta(ge=0, le=MAX_CREATED_AT, description="whole seconds since 1970 (UTC)")]


class UserCreated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One user to create. `created_at` is in epoch seconds; None is the message's publish time. `settings` is any text."""

    user_id: UserId
    email_address: str | None = None
    settings: str | None = None
    created_at: Seconds | None = None

    def __repr__(self) -> str:
        return f"UserCreated(user_id={self.user_id})"  # the rest is the user's


class UserUpdated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole content that a user has from now on: a field that is left out is null."""

    user_id: UserId
    email_address: str | None = None
    settings: str | None = None

    def __repr__(self) -> str:
        return f"UserUpdated(user_id={self.user_id})"


class UserDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """A user who is no longer there. For a person's right to be forgotten there is `worker erase` instead."""

    user_id: UserId


class User(Model):
    """One user. `created_at` is in seconds since the epoch; `deleted` is 0 or 1."""

    user_id = BigIntegerField(primary_key=True)
    email_address = TextField(null=True)
    created_at = BigIntegerField(null=True)
    deleted = BigIntegerField(null=True)
    settings = TextField(null=True)

    class Meta:
        table_name = "users"


def _created(user: UserCreated, published: int) -> tuple[int, str | None, int, int, str | None]:
    # The message's own time or, so that a replay gives the same row, its publish time.
    created_at = published // 1000 if user.created_at is None else user.created_at
    return user.user_id, user.email_address, created_at, 0, user.settings


def _updated(user: UserUpdated, _: int) -> tuple[int, str | None, None, int, str | None]:
    return user.user_id, user.email_address, None, 0, user.settings


def _deleted(user: UserDeleted, _: int) -> tuple[int, None, None, int, None]:
    return user.user_id, None, None, 1, None


_SETS: Final = ("email_address", "deleted", "settings")  # created_at is what user.created says

USER_CREATED: Final = Event(
    "user.created",
    UserCreated,
    User,
    row=_created,
    subject="user_id",
    unsaid={"created_at": None},
    gone="deleted",
    readable=True,
)
EVENTS: Final = [
    USER_CREATED,
    Event("user.updated", UserUpdated, User, row=_updated, subject="user_id", when_there="newest", sets=_SETS),
    Event("user.deleted", UserDeleted, User, row=_deleted, subject="user_id", when_there="newest", sets=_SETS),
]
MIGRATIONS: Final = Path(__file__).parent / "migrations"
