"""Tables, connections, bulk statements, queries and migrations. It decides nothing about messages."""
