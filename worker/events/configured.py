"""The events that the settings name."""

from worker.config import Settings
from worker.errors import ConfigError
from worker.events.catalog import Catalog
from worker.events.declaration import EventError


def catalog_of(settings: Settings) -> Catalog:
    """Load the modules of EVENTS.

    Raises:
        ConfigError: A module cannot be imported, or its events cannot work.
    """
    try:
        return Catalog.load(settings.events, unknown=settings.unknown_fields)
    except EventError as error:
        raise ConfigError(f"EVENTS is {settings.events!r}: {error}") from error
