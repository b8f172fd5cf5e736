"""What the events of a process are, for people, and the Avro schemas of their topics.

A message that its event takes must never be refused by the topic. Avro's JSON encoding has no absent field, and wraps a
value that may be null; so a schema names the required fields alone that hold one scalar.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from worker.errors import ConfigError
from worker.events.catalog import Catalog
from worker.events.declaration import Event

_AVRO_TYPES: Final[Mapping[type, str]] = {
    inspect.IntType: "long",
    inspect.StrType: "string",
    inspect.FloatType: "double",
    inspect.BoolType: "boolean",
}
"""Source: Avro specification, "Primitive Types"."""
_AVRO_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Source: Avro specification, "Names"."""


class Described(msgspec.Struct, frozen=True):
    """One event. `fields` says of each field what it must be; `required` names those that no message may leave out."""

    name: str
    module: str
    table: str
    key: str
    subject: str | None
    when_there: str
    version: str | None
    readable: bool
    fields: dict[str, str]
    required: list[str]


def described(catalog: Catalog) -> list[Described]:
    """The events, in the order of EVENTS."""
    return [
        Described(
            event.name,
            catalog.modules[event.name],
            event.table,
            event.key,
            event.subject,
            event.when_there,
            (event.version or "publish time") if event.when_there == "newest" else None,
            catalog.tables[event.table].readable,
            dict(event.fields),
            list(event.required),
        )
        for event in catalog.events.values()
    ]


def avro(catalog: Catalog, name: str) -> dict[str, Any]:
    """The Avro schema for a topic that carries messages of one event.

    Raises:
        ConfigError: There is no event of that name.
    """
    event = catalog.events.get(name)
    if event is None:
        raise ConfigError(f"there is no event {name}; EVENTS declares {', '.join(catalog.events)}")
    return {
        "type": "record",
        "name": event.content.__name__,
        "doc": f"What Pub/Sub checks of {name} at publish: required fields alone, because Avro cannot say 'may be absent or "
        f"null'. Avro has no ranges, so the worker checks those. Made by: python -m worker schema {name}",
        "fields": _required(event),
    }


def _required(event: Event) -> list[dict[str, str]]:
    content: Any = inspect.type_info(event.content)
    fields = []
    for field in content.fields:
        kind = field.type.type if isinstance(field.type, inspect.Metadata) else field.type
        avro_type = _AVRO_TYPES.get(type(kind))
        if field.required and avro_type and _AVRO_NAME.fullmatch(field.encode_name):
            fields.append({"name": field.encode_name, "type": avro_type, "doc": event.fields[field.encode_name]})
    return fields
