"""The users. The model is repeated here, frozen: a later model must not change what this migration did."""

from peewee import BigIntegerField, IntegerField, Model, SqliteDatabase, TextField


def up(migrator, db):
    """Create users."""
    sqlite = isinstance(db, SqliteDatabase)
    integer = IntegerField if sqlite else BigIntegerField  # in SQLite only INTEGER PRIMARY KEY is the rowid itself

    class User(Model):
        user_id = integer(primary_key=True)
        email_address = TextField(null=True)
        created_at = integer(null=True)
        deleted = integer(null=True)
        settings = TextField(null=True)

        class Meta:
            table_name = "users"

    User.bind(db)
    db.create_tables([User])
