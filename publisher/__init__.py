"""Publishes user-creation messages. Cheap to import: only `publisher.client` brings Pub/Sub in."""

from typing import Final

__version__: Final = "0.1.0"
"""The version of worker and publisher together; the wheel's is read from here."""
