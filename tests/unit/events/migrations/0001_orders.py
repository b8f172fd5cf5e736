"""The orders."""

from peewee import BigIntegerField, Model, TextField


def up(migrator, db):
    """Create orders."""

    class Order(Model):
        order_id = TextField(primary_key=True)
        customer = TextField(null=True)
        total = BigIntegerField()
        lines = TextField(null=True)

        class Meta:
            table_name = "orders"

    Order.bind(db)
    db.create_tables([Order])
