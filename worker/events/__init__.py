"""What a message does is declared here: its fields, its table, its row, and whose data it is.

An event's module imports the declaration alone, so that the publisher and the worker share it. Nothing here knows of groups,
receipts or the bucket.
"""
