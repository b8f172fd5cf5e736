"""The worker's own tables. Models are repeated here, frozen: a later model must not change what this migration did."""

from peewee import BigIntegerField, BlobField, Model, SqliteDatabase, TextField


def up(migrator, db):
    """Create receipts, rejections, erased and versions."""
    sqlite = isinstance(db, SqliteDatabase)
    # Ids are walked in the order that SQLite and Python have; another collation sorts them differently.
    bytewise = {} if sqlite else {"collation": '"C"'}

    class Receipt(Model):
        message_id = TextField(primary_key=True, **bytewise)
        subject = TextField(null=True)
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
        stored = TextField(null=True)
        delivery_attempt = BigIntegerField(null=True)
        resolution = TextField(null=True)
        body = TextField(null=True)
        bytes = BigIntegerField(null=True)
        about = TextField(null=True)

        class Meta:
            table_name = "rejections"

    class Erased(Model):
        subject = TextField(primary_key=True, **bytewise)
        erased_at = BigIntegerField()

        class Meta:
            table_name = "erased"
            without_rowid = sqlite

    class Version(Model):
        row = TextField(primary_key=True, **bytewise)
        version = BigIntegerField()
        message_id = TextField()

        class Meta:
            table_name = "versions"
            without_rowid = sqlite

    for model in (Receipt, Rejection, Erased, Version):
        model.bind(db)
    db.create_tables([Receipt, Rejection, Erased, Version])
