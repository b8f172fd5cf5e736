"""Columns for working on a rejection: the stored side of a conflict, the delivery attempt, and how it ended."""

from peewee import BigIntegerField, TextField


def up(migrator, db):
    """Add the columns."""
    migrator.migrate(
        migrator.add_column("rejections", "stored", TextField(null=True)),
        migrator.add_column("rejections", "delivery_attempt", BigIntegerField(null=True)),
        migrator.add_column("rejections", "resolution", TextField(null=True)),
    )
