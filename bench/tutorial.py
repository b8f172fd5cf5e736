"""What is deployed today: the Flask flavour of functions-framework, one insert per message, Litestream in the background.

A message is acknowledged once it is on this machine's disk; what Litestream has not uploaded when the instance ends is lost.
`functions-framework --target handle --source bench/tutorial.py` runs it, as its documentation says: gunicorn with threads.
The pragmas are those that Litestream's documentation recommends. Each thread keeps its connection, in the tutorial's favour.
"""

from __future__ import annotations

import base64
import json
import os
import time

import flask
import functions_framework
from peewee import BigIntegerField, Model, SqliteDatabase, TextField

database = SqliteDatabase(
    os.environ.get("DATABASE_PATH", ":memory:"),
    pragmas={"journal_mode": "wal", "synchronous": "normal", "busy_timeout": 5000},
)


class User(Model):
    """One user."""

    user_id = BigIntegerField(primary_key=True)
    email_address = TextField(null=True)
    created_at = BigIntegerField(null=True)
    deleted = BigIntegerField(null=True)
    settings = TextField(null=True)

    class Meta:
        database = database
        table_name = "users"


with database:  # gunicorn forks: no connection may be open then
    database.create_tables([User])


@functions_framework.http
def handle(request: flask.Request) -> tuple[str, int]:
    """The functions-framework target."""
    if request.method != "POST":
        return "", 405
    user = json.loads(base64.b64decode(request.get_json()["message"]["data"]))
    User.create(
        user_id=user["user_id"],
        email_address=user.get("email_address"),
        created_at=int(time.time()),
        deleted=0,
        settings=user.get("settings"),
    )
    return "", 204
