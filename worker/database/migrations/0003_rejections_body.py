"""Where the bytes of a large rejected message are, how many they are, and whom the message is about."""

from peewee import BigIntegerField, TextField


def up(migrator, db):
    """Add the columns."""
    migrator.migrate(
        migrator.add_column("rejections", "body", TextField(null=True)),
        migrator.add_column("rejections", "bytes", BigIntegerField(null=True)),
        migrator.add_column("rejections", "about", BigIntegerField(null=True)),
        migrator.sql("UPDATE rejections SET bytes = LENGTH(data)"),
    )
