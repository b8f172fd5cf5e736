"""The events that a process knows: loaded from the modules that EVENTS names, checked against one another, found by name."""

import difflib
import functools
import importlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import contains
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec
from peewee import Model

from worker.events.declaration import (
    COLUMN_TYPES,
    EVENT_TYPE_ATTRIBUTE,
    MAX_INTEGER,
    MAX_KEY_BYTES,
    MAX_SUBJECT_BYTES,
    Event,
    EventError,
    MessageError,
    Reason,
)

BUILT_IN: Final = "worker.events.users"
"""The module that EVENTS names by default."""
DEFAULT_EVENT: Final = "user.created"
"""The event of a message that names none."""
OWN_TABLES: Final = ("receipts", "rejections", "erased", "versions", "instances")
"""Tables that the worker keeps itself."""
HISTORY: Final = "schema_migration"
"""The table in which a database remembers the worker's own migrations; those of events begin in the same way."""
_NAMES_MAX: Final = 20
"""Most names of unknown fields that are counted for one event: they come from outside (INV-7)."""
_OTHER_NAMES: Final = "(other)"
_SUBJECT_DIGITS: Final = 19
_SUBJECT_JSON_BYTES: Final = 2 + 6 * MAX_SUBJECT_BYTES
"""Longest that a subject can be written: as text, each character escaped."""

log = logging.getLogger(__name__)


class Content(NamedTuple):
    """A message that keeps to its event's format: the fields, the row that follows, its key, and whose data it is."""

    event: Event
    fields: msgspec.Struct
    row: tuple[Any, ...]
    key: int | str
    subject: str | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a message cannot have its effect: a code of a closed list, and a line that names the field but no value.

    `subject` is whose data it tries to be, as far as that can be read: an erased one's message is not kept.
    """

    reason: str
    detail: str
    subject: str | None = None


@dataclass(frozen=True)
class Table:
    """A table, and the events that write it."""

    name: str
    model: type[Model]
    events: Sequence[Event]

    @functools.cached_property
    def columns(self) -> Sequence[str]:
        """The names of the columns, in order."""
        return self.events[0].columns

    @functools.cached_property
    def types(self) -> Sequence[tuple[type, ...]]:
        """What each column holds beside null."""
        fields: Any = self.model._meta.sorted_fields
        return [COLUMN_TYPES[each.field_type] for each in fields]

    @functools.cached_property
    def key(self) -> str:
        """The column that is the primary key."""
        return self.events[0].key

    @functools.cached_property
    def key_at(self) -> int:
        """Where a row holds its key."""
        return self.columns.index(self.key)

    @functools.cached_property
    def key_is_text(self) -> bool:
        """Whether keys are texts; otherwise they are integers."""
        kind: Any = self.model._meta.primary_key
        return kind.field_type in ("TEXT", "VARCHAR")

    @functools.cached_property
    def subject(self) -> str | None:
        """The column that says whose row it is."""
        return next((each.subject for each in self.events if each.subject), None)

    @functools.cached_property
    def gone(self) -> str | None:
        """The column that is not 0 in a row that counts as deleted."""
        return next((each.gone for each in self.events if each.gone), None)

    @functools.cached_property
    def gone_at(self) -> int | None:
        """Where a row holds `gone`."""
        return None if self.gone is None else self.columns.index(self.gone)

    @functools.cached_property
    def readable(self) -> bool:
        """Whether rows are read over HTTP."""
        return any(each.readable for each in self.events)

    @functools.cached_property
    def updates(self) -> Sequence[Event]:
        """The events that replace a row by a newer version."""
        return [each for each in self.events if each.when_there == "newest"]

    @functools.cached_property
    def base(self) -> Sequence[int]:
        """Where a row holds what no update sets: it comes from the event that creates rows."""
        if not self.updates or any(each.sets is None for each in self.updates):
            return ()
        set_by_updates = {name for each in self.updates for name in each.sets or ()}
        return [at for at, name in enumerate(self.columns) if name not in set_by_updates and at != self.key_at]


@dataclass(slots=True)
class UnknownFields:
    """Counts the messages that have fields which their event does not declare, by event and field.

    Only the event loop touches it.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, event: Event, names: Sequence[str]) -> None:
        """Count one message's; the first of each is logged."""
        for name in names:
            key = (event.name, name)
            if key not in self.counts:
                if sum(known == event.name for known, _ in self.counts) >= _NAMES_MAX:
                    key = (event.name, _OTHER_NAMES)
                else:
                    log.warning("%s: %s", event.name, unknown_field(event, name), extra={"action": "message.unknown_field"})
            self.counts[key] = self.counts.get(key, 0) + 1


def unknown_field(event: Event, name: str) -> str:
    """What a person should know of a field that an event does not declare."""
    close = difflib.get_close_matches(name, list(event.fields), n=1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(event.fields)}"
    return f"field {name} is unknown: {hint}"


class HiddenError(Exception):
    """Stands in a log for an error whose own text may hold a person's data."""


def without_values(error: Exception, text: str) -> Any:
    """What `exc_info` of a log takes: where an error was raised, with this text for its own."""
    return HiddenError, HiddenError(text), error.__traceback__


class _Shape(NamedTuple):
    """What is looked at of each message of an event: read once, because it is on the main path."""

    types: Sequence[frozenset[type]]
    """The types of values that each column takes."""
    key: str
    key_at: int
    key_type: type
    subject: str | None
    """The attribute of the content that holds the subject."""


def history(package: str) -> str:
    """The table in which a database remembers the migrations of a package."""
    return f"{HISTORY}_{re.sub(r'[^0-9A-Za-z]', '_', package)}"


class Catalog:
    """Events by name, and their tables.

    Args:
        modules: The modules' names and events, in the order of EVENTS.
        unknown: What a message with fields that its event does not declare comes to: they are passed over, or the message
            is rejected.

    Raises:
        EventError: Two events contradict one another; the text names the module.
    """

    def __init__(
        self,
        modules: Mapping[str, Sequence[Event]],
        migrations: Mapping[str, Path] | None = None,
        *,
        unknown: Literal["count", "reject"] = "count",
    ) -> None:
        self.events: dict[str, Event] = {}
        self.modules: dict[str, str] = {}
        """The module of each event, by the event's name."""
        self.migrations: Mapping[str, Path] = migrations or {}
        """Folders of migrations, by the name under which a database remembers them."""
        self.unknown_fields = UnknownFields()
        self._reject_unknown = unknown == "reject"
        for module, events in modules.items():
            for event in events:
                if event.name in self.events:
                    raise EventError(f"{module}: event {event.name} is declared by {self.modules[event.name]} already")
                self.events[event.name], self.modules[event.name] = event, module
        self.tables: dict[str, Table] = {}
        for name in dict.fromkeys(event.table for event in self.events.values()):
            self.tables[name] = self._table(name)
        self._shapes = {event.name: self._shape(event) for event in self.events.values()}
        self._subjects = sorted({event.subject for event in self.events.values() if event.subject})
        self._numbers = self._kinds_of_subjects()
        self._claims = {name: msgspec.json.Decoder(_claim(name)) for name in self._subjects}

    def __repr__(self) -> str:
        return f"<Catalog of {', '.join(self.events)}>"

    @classmethod
    def load(cls, names: str, *, unknown: Literal["count", "reject"] = "count") -> Self:
        """Import the modules of a comma-separated list.

        Raises:
            EventError: A module cannot be imported or declares no event, or its events contradict one another.
        """
        modules: dict[str, Sequence[Event]] = {}
        folders: dict[str, Path] = {}
        histories: dict[str, str] = {}
        for name in filter(None, (each.strip() for each in names.split(","))):
            if name in modules:
                raise EventError(f"{name} is named twice")
            module = _imported(name)
            modules[name] = module.EVENTS
            if (folder := getattr(module, "MIGRATIONS", None)) is not None:
                package = module.__package__ or name
                if not isinstance(folder, str | Path) or not Path(folder).is_dir():
                    raise EventError(f"{name}: MIGRATIONS names {folder!s}, which is no folder")
                if folders.setdefault(package, Path(folder)) != Path(folder):
                    raise EventError(f"{name}: the modules of package {package} must share one folder of MIGRATIONS")
                if (other := histories.setdefault(history(package).lower(), package)) != package:
                    raise EventError(f"{name}: a database cannot tell the migrations of {package} from those of {other}")
        if not modules:
            raise EventError(f"no module is named; name one at least, such as {BUILT_IN}")
        return cls(modules, folders, unknown=unknown)

    def event(self, attributes: Mapping[str, str]) -> Event:
        """The event that a message's attributes name.

        Raises:
            MessageError: There is none of that name.
        """
        event = self.events.get(attributes.get(EVENT_TYPE_ATTRIBUTE, DEFAULT_EVENT))
        if event is None:
            absent = " or absent" if DEFAULT_EVENT in self.events else ""
            detail = f"attribute {EVENT_TYPE_ATTRIBUTE} must be one of {', '.join(self.events)}{absent}"
            raise MessageError(Reason.UNKNOWN_EVENT, detail, EVENT_TYPE_ATTRIBUTE)
        return event

    def read(
        self, data: bytes, attributes: Mapping[str, str], publish_time: int, *, again: bool = False
    ) -> Content | Problem:
        """Read a message, or say what is wrong with it.

        Args:
            data: The message's.
            attributes: The message's.
            publish_time: In milliseconds since the epoch.
            again: Its unknown fields were counted when it came first. Only then may another thread call this.
        """
        event = None
        try:
            event = self.event(attributes)
            fields = event.decode(data)
            if unknown := event.unknown_fields(data):
                if not again:
                    self.unknown_fields.add(event, unknown)
                if self._reject_unknown:
                    raise MessageError(Reason.UNKNOWN_FIELD, unknown_field(event, unknown[0]))
            return self._content(event, fields, publish_time)
        except MessageError as error:
            return Problem(error.reason, error.detail, self.claimed_subject(data, event))

    def subject_named(self, text: str) -> str:
        """The subject that a person means. Where all of them are numbers, `007` is 7; a text is what it is."""
        number = all(self._numbers.values()) and text.isascii() and text.removeprefix("-").isdecimal()
        return str(int(text)) if number else text

    def subjects_in(self, row: Mapping[str, Any], event: Event | None) -> Iterator[str]:
        """Whose row a stored one is; where the event that met it is not known any more, whose it may be."""
        return (str(row[name]) for name in self._named(event) if row.get(name) is not None)

    def claimed_subject(self, data: bytes, event: Event | None = None) -> str | None:
        """Whose data a message that breaks the format tries to be; None if that cannot be read."""
        return next(self.claimed_subjects(data, event), None)

    def claimed_subjects(self, data: bytes, event: Event | None = None) -> Iterator[str]:
        """Whose data a message tries to be; several only if its event is not known.

        Whatever else is in it is passed over and not built: 10 MB of empty lists take seconds, and 20 times their size.
        """
        for name in self._named(event):
            try:
                stated = bytes(self._claims[name].decode(data).subject)  # type: ignore[attr-defined]  # made by _claim
                value = msgspec.json.decode(stated) if 0 < len(stated) <= _SUBJECT_JSON_BYTES else None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if self._numbers[name] and isinstance(value, str) and value.isascii() and value.isdecimal():
                value = int(value) if len(value) <= _SUBJECT_DIGITS else None
            if type(value) is int and 0 < value <= MAX_INTEGER:
                yield str(value)
            elif not self._numbers[name] and isinstance(value, str) and 0 < len(value.encode()) <= MAX_SUBJECT_BYTES:
                yield from () if "\0" in value else (value,)  # a text of PostgreSQL holds none: it could not be kept

    def _named(self, event: Event | None) -> Sequence[str]:
        """The names of fields and columns that may say whose something is."""
        return self._subjects if event is None else [] if event.subject is None else [event.subject]

    def _content(self, event: Event, fields: msgspec.Struct, publish_time: int) -> Content:
        shape = self._shapes[event.name]
        try:
            row: tuple[Any, ...] = tuple(event.row(fields, publish_time))
        except Exception as error:  # an adopter's code: whatever it raises, this message fails alone (INV-6)
            where = without_values(error, type(error).__name__)
            log.error("the row of a message cannot be made", exc_info=where, extra={"action": "message.no_row"})
            detail = f"the row of {event.name} cannot be made: {type(error).__name__}; the log says why"
            raise MessageError(Reason.OUT_OF_RANGE, detail) from None
        if len(row) != len(shape.types):
            raise MessageError(Reason.OUT_OF_RANGE, f"{event.name} makes {len(row)} values for {len(shape.types)} columns")
        key: Any = row[shape.key_at]
        subject = None if shape.subject is None else getattr(fields, shape.subject)
        if type(key) is not shape.key_type or not isinstance(key, int | str):
            kind = "a text" if shape.key_type is str else "an integer"
            raise MessageError(Reason.WRONG_TYPE, f"{shape.key} must be {kind}", shape.key)
        if False in map(contains, shape.types, map(type, row)):
            _check_values(self.tables[event.table], row)
        if isinstance(key, str):
            _check_bytes(shape.key, key, MAX_KEY_BYTES)
        if subject is None or type(subject) is int:
            return Content(event, fields, row, key, None if subject is None else str(subject))
        _check_bytes(event.subject or "", str(subject), MAX_SUBJECT_BYTES)
        return Content(event, fields, row, key, str(subject))

    def _kinds_of_subjects(self) -> Mapping[str, bool]:
        """Whether each subject is a number, by its name."""
        kinds: dict[str, bool] = {}
        for event in self.events.values():
            if event.subject and kinds.setdefault(event.subject, event.subject_is_number) != event.subject_is_number:
                who = f"{self.modules[event.name]}: event {event.name}"
                raise EventError(f"{who}: its subject {event.subject} is an integer in one event and a text in another")
        return kinds

    def _shape(self, event: Event) -> _Shape:
        table = self.tables[event.table]
        subject = None if event.subject is None else event.attributes[event.subject]
        types = [frozenset((*each, type(None))) for each in table.types]
        return _Shape(types, table.key, table.key_at, str if table.key_is_text else int, subject)

    def _table(self, name: str) -> Table:
        events = [event for event in self.events.values() if event.table == name]
        first = events[0]
        known = name.lower()  # as SQLite takes it
        if known in OWN_TABLES or known.startswith((HISTORY, "sqlite_", "_litestream")):
            raise EventError(f"{self.modules[first.name]}: event {first.name}: table {name} is the worker's own")
        if other := next((each for each in self.tables if each.lower() == known), None):
            raise EventError(f"{self.modules[first.name]}: event {first.name}: to SQLite table {name} is table {other}")
        for event in events[1:]:
            who = f"{self.modules[event.name]}: event {event.name}"
            if event.model is not first.model:
                raise EventError(
                    f"{who}: table {name} is declared by {self.modules[first.name]} already, with another model"
                )
            if event.subject != first.subject:
                raise EventError(
                    f"{who}: its subject must be {first.subject}, as that of {first.name} is, of the same table"
                )
            if event.gone not in (None, first.gone):
                raise EventError(f"{who}: gone is said once for a table, by its first event, {first.name}")
        versions = {event.version for event in events if event.when_there == "newest"}
        if len(versions) > 1:
            raise EventError(f"{self.modules[first.name]}: the events of table {name} must be ordered by one version")
        return Table(name, first.model, events)


def _check_values(table: Table, row: Sequence[Any]) -> None:
    """Refuse a value of another type than its column's: SQLite takes any, and may give back another one."""
    for name, types, value in zip(table.columns, table.types, row, strict=True):
        right = isinstance(value, types) and (bool in types or not isinstance(value, bool))  # also an enumeration's text
        if value is not None and not right:
            said = " or ".join(each.__name__ for each in types)
            raise MessageError(
                Reason.WRONG_TYPE, f"the row's {name} is of type {type(value).__name__}, and not {said}", name
            )


def _check_bytes(name: str, text: str, most: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # made by the row's code: a field of a message has none
        raise MessageError(Reason.BAD_TEXT, f"{name} must not contain a lone surrogate", name) from None
    if not 0 < size <= most:
        raise MessageError(Reason.OUT_OF_RANGE, f"{name} must have 1 to {most} bytes", name)


def _claim(name: str) -> type[msgspec.Struct]:
    return msgspec.defstruct("Claim", [("subject", msgspec.Raw, msgspec.field(default=msgspec.Raw(), name=name))])


def _imported(name: str) -> Any:
    try:
        module: Any = importlib.import_module(name)
    except EventError as error:
        raise EventError(f"{name}: {error}") from None
    except ImportError as error:
        raise EventError(
            f"{name} cannot be imported: {error}; put the folder that holds it into PYTHONPATH, or install it"
        ) from None
    except (Exception, SystemExit) as error:
        raise EventError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    events = getattr(module, "EVENTS", None)
    if not isinstance(events, list | tuple) or not events or not all(isinstance(each, Event) for each in events):
        raise EventError(f"{name} declares no events: it must have a list EVENTS of worker.events.declaration.Event")
    return module
