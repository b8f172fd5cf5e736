"""The first tables. Models are repeated here, frozen: a later model must not change what this migration did."""

from peewee import BigIntegerField, BlobField, IntegerField, Model, SqliteDatabase, TextField


def up(migrator, db):
    """Create users, receipts and rejections."""
    sqlite = isinstance(db, SqliteDatabase)
    # Ids are walked in the order that SQLite and Python have; another collation sorts them differently.
    bytewise = {} if sqlite else {"collation": '"C"'}

    class User(Model):
        # In SQLite only INTEGER PRIMARY KEY is the rowid itself; elsewhere 64 bits must be asked for.
        user_id = (IntegerField if sqlite else BigIntegerField)(primary_key=True)
        email_address = TextField(null=True)
        created_at = (IntegerField if sqlite else BigIntegerField)(null=True)
        deleted = (IntegerField if sqlite else BigIntegerField)(null=True)
        settings = TextField(null=True)

        class Meta:
            table_name = "users"

    class Receipt(Model):
        message_id = TextField(primary_key=True, **bytewise)
        user_id = BigIntegerField(null=True)
        outcome = TextField()
        publish_time = BigIntegerField()
        processed_at = BigIntegerField()
        epoch = BigIntegerField()

        class Meta:
            table_name = "receipts"
            without_rowid = sqlite  # one B-tree instead of two: half the pages a group touches

    class Rejection(Model):
        message_id = TextField(primary_key=True, **bytewise)
        reason = TextField()
        detail = TextField()
        data = BlobField()
        attributes = TextField()
        publish_time = BigIntegerField()
        received_at = BigIntegerField()
        resolved_at = BigIntegerField(null=True)

        class Meta:
            table_name = "rejections"

    for model in (User, Receipt, Rejection):
        model.bind(db)
    db.create_tables([User, Receipt, Rejection])
