"""The orders. The model is repeated here, frozen: a later model must not change what this migration did."""

from peewee import BigIntegerField, Model, TextField


def up(migrator, db):
    """Create orders."""

    class Order(Model):
        order_id = TextField(primary_key=True)
        customer_id = BigIntegerField(index=True)
        total_cents = BigIntegerField()
        note = TextField(null=True)
        revision = BigIntegerField()

        class Meta:
            table_name = "orders"

    Order.bind(db)
    db.create_tables([Order])
