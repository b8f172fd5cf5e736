"""The orders."""

from peewee import BigIntegerField, IntegerField, Model, SqliteDatabase, TextField


def up(migrator, db):
    """Create orders."""
    integer = IntegerField if isinstance(db, SqliteDatabase) else BigIntegerField

    class Order(Model):
        order_id = integer(primary_key=True)
        customer_id = BigIntegerField(index=True)
        note = TextField(null=True)

        class Meta:
            table_name = "orders"

    Order.bind(db)
    db.create_tables([Order])
