"""The events that the settings name."""

from typing import Literal

from worker.config import Settings
from worker.errors import ConfigError
from worker.events.catalog import BUILT_IN, Catalog
from worker.events.declaration import EventError


def catalog_of(settings: Settings) -> Catalog:
    """Load the modules of EVENTS.

    Raises:
        ConfigError: A module cannot be imported, or its events cannot work.
    """
    return catalog_named(settings.events, unknown=settings.unknown_fields)


def catalog_named(modules: str, *, unknown: Literal["count", "reject"] = "count") -> Catalog:
    """Load the modules of a list as EVENTS has it; an empty one stands for the built-in module.

    Raises:
        ConfigError: See `catalog_of`.
    """
    names = modules or BUILT_IN
    try:
        return Catalog.load(names, unknown=unknown)
    except EventError as error:
        raise ConfigError(f"EVENTS is {names!r}: {error}") from error
