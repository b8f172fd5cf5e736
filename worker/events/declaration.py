"""An event: a name, the fields of its messages, the table they are written to, and the row that follows from a message.

    class OrderPlaced(msgspec.Struct, frozen=True, kw_only=True): ...      the fields, which `data` holds as a JSON object
    class Order(peewee.Model): ...                                          the table
    EVENTS = [Event("order.placed", OrderPlaced, Order, row=...)]           how one follows from the other

Rules of the format, whatever the event:
    * `data` is a JSON object in UTF-8, at most MAX_DATA_BYTES long. A key that appears twice counts as its last occurrence.
    * Each value has exactly the type of its field: `5.0`, `"5"` and `true` are not integers.
    * A field that the event does not declare is passed over: an old worker must accept a newer publisher.
    * Strings hold no NUL and no lone surrogate: no database column and no UTF-8 encoder takes them.

What breaks a rule raises `MessageError`. Its text names the field and what the field must be, never what it was: an e-mail
address belongs in no log.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import inspect
from peewee import Model

MAX_DATA_BYTES: Final = 10_000_000
"""Largest `data`, in bytes: Pub/Sub takes no larger message (10 MB)."""
MAX_KEY_BYTES: Final = 1024
"""Longest key of a row, in bytes of UTF-8: an index of PostgreSQL takes 2,704 bytes an entry."""
MAX_SUBJECT_BYTES: Final = 128
"""Longest subject, in bytes of UTF-8: an erased one names an object, with three bytes for each, of 1,024 at most."""
MAX_INTEGER: Final = 2**63 - 1
"""Largest integer that a column of SQLite or PostgreSQL holds."""
EVENT_TYPE_ATTRIBUTE: Final = "event_type"
"""The attribute that names a message's event."""

WhenThere = Literal["keep", "newest"]
"""What a message does whose row is there: the row stays as it is, or the newest version of it wins."""

COLUMN_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "SMALLINT": (int,),
    "INT": (int,),
    "BIGINT": (int,),
    "CHAR": (str,),
    "VARCHAR": (str,),
    "TEXT": (str,),
    "FLOAT": (float, int),
    "DOUBLE": (float, int),
    "BLOB": (bytes,),
    "BOOL": (bool,),
}
"""The types of columns, as Peewee's fields have them, and the values that each holds beside null. Such a value comes back
from either database as it went in, so that a later message of the same content is told from a conflict."""
_INTEGERS: Final = ("INT", "BIGINT")
_COLUMN_TEXTS: Final = ("TEXT", "VARCHAR")
"""The types of columns, as Peewee's fields have them, that a key or a subject may have."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_PATH: Final = re.compile(r"`\$\.([^`]+)`")
_MISSING: Final = re.compile(r"missing required field `([^`]+)`")
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`", re.DOTALL)
_NAMES_READ_MAX: Final = 65_536
"""Longest message, in bytes, whose unknown fields are all looked for; of a longer one the first is enough (INV-7)."""
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
UNREADABLE_NAME: Final = "(another name)"
"""Stands for the name of an unknown field that is no plain word: it may be anything, also a person's data."""


_TEXTS: Final = {
    inspect.StrType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.UUIDType,
    inspect.DecimalType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.BytesType,
}


_OTHER_WORDS: Final[Mapping[type[inspect.Type], str]] = {
    inspect.DateType: "a date such as 2026-01-31",
    inspect.TimeType: "a time of day such as 12:00:00",
    inspect.UUIDType: "a UUID",
    inspect.DecimalType: "a decimal number",
    inspect.BytesType: "bytes in base64",
    inspect.AnyType: "any value",
}


class Reason(StrEnum):
    """Why a message can never be accepted. The list is closed: these codes are stored and alerted on."""

    TOO_LARGE = "too_large"  # data is longer than MAX_DATA_BYTES
    NOT_UTF8 = "not_utf8"  # data is not UTF-8 text
    NOT_JSON = "not_json"  # data is empty, not JSON, or nested too deeply to read
    NOT_AN_OBJECT = "not_an_object"  # data is JSON, but no object
    MISSING_FIELD = "missing_field"  # a required field is absent
    UNKNOWN_FIELD = "unknown_field"  # a field that the event does not declare, while UNKNOWN_FIELDS is reject
    WRONG_TYPE = "wrong_type"  # a field has another JSON type than the event's
    OUT_OF_RANGE = "out_of_range"  # a value lies outside its field's limits
    BAD_TEXT = "bad_text"  # a string holds a NUL or a lone surrogate
    UNKNOWN_EVENT = "unknown_event"  # attribute event_type names no event that this worker knows


class MessageError(ValueError):
    """A message that can never be accepted, however often it is delivered.

    Attributes:
        reason: one of the closed list of codes.
        field: the field (or attribute) at fault, or None when the message as a whole is.
        detail: one line for a person; names the field and what it must be, never the data.
    """

    def __init__(self, reason: Reason, detail: str, field: str | None = None) -> None:
        super().__init__(reason, detail, field)
        self.reason: Final = reason
        self.detail: Final = detail
        self.field: Final = field

    def __str__(self) -> str:
        return self.detail


class EventError(ValueError):
    """An event cannot be declared like this; the text says what is wrong."""


@dataclass(frozen=True, eq=False, repr=False)
class Event:
    """What messages of one kind do.

    Attributes:
        name: The `event_type` of its messages.
        content: The fields of `data`: a msgspec struct.
        model: The table: a Peewee model with one primary key, an integer or a text of at most MAX_KEY_BYTES.
        row: Makes the row from the content and the publish time, in milliseconds since the epoch. The row has a value for
            each column, in the columns' order. It must depend on nothing else, so that a replay gives the same row.
        subject: The field that says whose data it is, and the column of the same name. Receipts name the subject, and an
            erasure of the subject deletes the rows. None: the rows are no person's.
        unsaid: Columns that are compared with the stored row only if the message states them: the column's name, and the
            value of the field of that name which means that the message states nothing.
        when_there: `keep`: a row that is there stays, and other content is a conflict. `newest`: the newest version wins.
        version: The integer field that orders the versions; None: the publish time does.
        sets: The columns that a `newest` event sets in a row that is there; None: all of them.
        gone: The column that is not 0 in a row that counts as deleted: it is not read.
        readable: Whether rows are read over HTTP, at /tables/<table>/<key>.

    Raises:
        EventError: It contradicts itself.
    """

    name: str
    content: type[msgspec.Struct]
    model: type[Model]
    row: Callable[[Any, int], tuple[Any, ...]]
    _: KW_ONLY
    subject: str | None = None
    unsaid: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    when_there: WhenThere = "keep"
    version: str | None = None
    sets: tuple[str, ...] | None = None
    gone: str | None = None
    readable: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def __repr__(self) -> str:
        return f"<Event {self.name}>"

    @functools.cached_property
    def columns(self) -> Sequence[str]:
        """The names of the table's columns, in order."""
        names: Sequence[str] = self.model._meta.sorted_field_names
        return names

    @functools.cached_property
    def table(self) -> str:
        """The table's name."""
        return str(self.model._meta.table_name)

    @functools.cached_property
    def key(self) -> str:
        """The column that is the primary key."""
        key: Any = self.model._meta.primary_key
        return str(key.name)

    @functools.cached_property
    def fields(self) -> Mapping[str, str]:
        """What each field of a message must be, by name."""
        return {each.encode_name: _words(each.type) for each in _fields(self.content)}

    @functools.cached_property
    def types(self) -> Mapping[str, Set[type[inspect.Type]]]:
        """The types of values that each field takes, by name."""
        return {each.encode_name: _types(each.type) for each in _fields(self.content)}

    @functools.cached_property
    def kinds(self) -> Mapping[str, Literal["integer", "number", "text", "truth", "json"]]:
        """How the value of each field is written where everything is text, such as in a CSV, by name."""
        return {each.encode_name: _written(each.type) for each in _fields(self.content)}

    @functools.cached_property
    def subject_is_number(self) -> bool:
        """Whether the subject is an integer; otherwise it is a text."""
        return self.subject is not None and inspect.IntType in self.types[self.subject]

    @functools.cached_property
    def required(self) -> Sequence[str]:
        """The fields that each message must have."""
        return [each.encode_name for each in _fields(self.content) if each.required]

    def value(self, content: msgspec.Struct, name: str) -> Any:
        """The value of a field, by its name in `data`; None if there is no such field."""
        return getattr(content, self.attributes[name]) if name in self.attributes else None

    def decode(self, data: bytes, *, limit: int = MAX_DATA_BYTES) -> msgspec.Struct:
        """Read a message's `data`; `limit` is the largest, in bytes.

        Raises:
            MessageError: The message breaks the format; no other exception leaves this function.
        """
        if len(data) > limit:
            raise MessageError(Reason.TOO_LARGE, f"data must be at most {limit} bytes; it has {len(data)}")
        if not data:
            raise MessageError(Reason.NOT_JSON, "data is empty; it must be a JSON object")
        try:
            # msgspec does not look at the encoding of the fields it skips.
            data.decode("utf-8")
            content = self._decoder.decode(data)
            if b"\\u" in data:  # only an escape can spell a NUL
                _check_text(content)
        except MessageError:
            raise
        except UnicodeDecodeError as error:
            raise MessageError(Reason.NOT_UTF8, f"data must be UTF-8 text; byte {error.start} is not") from None
        except RecursionError:
            raise MessageError(Reason.NOT_JSON, "data is nested too deeply; it must be a flat JSON object") from None
        except msgspec.ValidationError as error:
            raise self._refusal(error) from None
        except msgspec.DecodeError as error:
            raise MessageError(Reason.NOT_JSON, f"data must be a JSON object: {error}") from None
        except Exception as error:
            raise self._failed(error) from error
        return content

    def build(self, fields: Mapping[str, Any]) -> msgspec.Struct:
        """The content that has these fields.

        Raises:
            MessageError: A field is unknown, missing or wrong.
        """
        for name in fields:
            if name not in self.fields:
                detail = f"{self.name} has no field {name}; it has {', '.join(self.fields)}"
                raise MessageError(Reason.UNKNOWN_FIELD, detail, name)
        try:
            content: msgspec.Struct = msgspec.convert(dict(fields), self.content)
        except msgspec.ValidationError as error:
            raise self._refusal(error) from None
        except Exception as error:
            raise self._failed(error) from error
        self._check_built(content)
        return content

    def encode(self, content: msgspec.Struct) -> bytes:
        """The message's `data`. What its class leaves out, such as default values, is left out.

        Raises:
            MessageError: The content breaks the format, or the result is longer than MAX_DATA_BYTES.
        """
        self._check_built(content)
        try:
            data = msgspec.json.encode(content)
        except (TypeError, OverflowError) as error:
            raise MessageError(Reason.WRONG_TYPE, f"{self.name} cannot be written as JSON: {error}") from None
        self.decode(data)
        return data

    def unknown_fields(self, data: bytes) -> Sequence[str]:
        """The fields of a message, which `decode` has taken, that the event does not declare; at most one of a large one.

        A name that is no plain word is UNREADABLE_NAME.
        """
        try:
            self._strict.decode(data)
        except msgspec.ValidationError as error:
            if len(data) <= _NAMES_READ_MAX:
                names = [name for name in msgspec.json.decode(data, type=dict[str, msgspec.Raw]) if name not in self.fields]
            else:
                found = _UNKNOWN.search(str(error))
                names = [found[1]] if found else []
            return sorted({_plain(name) for name in names})
        return ()

    @functools.cached_property
    def attributes(self) -> Mapping[str, str]:
        """The attribute of the content that holds each field, by the field's name in `data`."""
        return {each.encode_name: each.name for each in _fields(self.content)}

    @functools.cached_property
    def _decoder(self) -> msgspec.json.Decoder[msgspec.Struct]:
        return msgspec.json.Decoder(self.content)

    @functools.cached_property
    def _strict(self) -> msgspec.json.Decoder[msgspec.Struct]:
        # Fields alone: what the class checks of them has been checked.
        fields = [(f"field{at}", msgspec.Raw, _optional(each.encode_name)) for at, each in enumerate(_fields(self.content))]
        return msgspec.json.Decoder(msgspec.defstruct("Known", fields, forbid_unknown_fields=True))

    def _failed(self, error: Exception) -> MessageError:
        """A check or a default of the class's own has failed: the error's text may name a value (INV-6)."""
        return MessageError(Reason.OUT_OF_RANGE, f"a check of {self.content.__name__} failed: {type(error).__name__}")

    def _check_built(self, content: msgspec.Struct) -> None:
        try:
            _check_text(content)
        except RecursionError:
            raise MessageError(Reason.NOT_JSON, "a field is nested too deeply") from None

    def _refusal(self, error: msgspec.ValidationError) -> MessageError:
        if isinstance(error.__cause__, MessageError):  # raised by a check of the class's own
            return error.__cause__
        text = str(error)
        if unknown := _UNKNOWN.search(text.partition(" - at `$")[0]):  # by a class that forbids them
            return MessageError(Reason.UNKNOWN_FIELD, f"field {_plain(unknown[1])} is unknown to {self.name}")
        path, missing = _PATH.search(text), _MISSING.search(text)
        if path is None and missing is not None and missing[1] in self.fields:
            name = missing[1]
            return MessageError(Reason.MISSING_FIELD, f"{name} is missing; it must be {self.fields[name]}", name)
        name = "" if path is None else self._named(path[1])
        if path is None or not name:
            if text.startswith("Expected `object`"):
                return MessageError(Reason.NOT_AN_OBJECT, f"data must be a JSON object{self._with_required()}")
            return MessageError(Reason.OUT_OF_RANGE, text)  # the text of a check of the class's own
        inner = path[1].removeprefix(name)
        if missing is not None:
            return MessageError(Reason.MISSING_FIELD, f"{name}{inner} has no {missing[1]}, which is required", name)
        limits = " <" in text or " >" in text or " of length" in text or " matching " in text or "multiple" in text
        ranged = limits or text.startswith(("Integer value out of range", "Invalid enum value"))
        reason = Reason.OUT_OF_RANGE if ranged else Reason.WRONG_TYPE
        if inner and text.startswith("Expected"):  # the text names types and places, and no values
            return MessageError(reason, f"{name}{inner}: {text.partition(' - at ')[0]}", name)
        return MessageError(reason, f"{name} must be {self.fields[name]}", name)

    def _named(self, path: str) -> str:
        """The field that a path begins with; empty if it is none. A name may hold what divides a path: `order-id`, `a.b`."""
        return max((name for name in self.fields if re.match(rf"{re.escape(name)}(?=[.\[]|\Z)", path)), key=len, default="")

    def _with_required(self) -> str:
        return f" with {' and '.join(self.required)}" if self.required else ""


def _plain(name: str) -> str:
    """The name of an unknown field, as far as it may be shown."""
    return name if _FIELD_NAME.fullmatch(name) else UNREADABLE_NAME


def _optional(name: str) -> Any:
    return msgspec.field(default=msgspec.Raw(), name=name)


def _check(event: Event) -> None:
    """Refuse an event that cannot work."""
    if not _NAME.fullmatch(event.name):
        raise EventError("its name must begin with a letter and go on with letters, digits, '.', '_' and '-', at most 128")
    if not (isinstance(event.content, type) and issubclass(event.content, msgspec.Struct)):
        raise EventError("its content must be a msgspec.Struct class")
    if not (isinstance(event.model, type) and issubclass(event.model, Model)):
        raise EventError("its model must be a Peewee Model class")
    _check_model(event)
    _check_names(event, {each.encode_name for each in _fields(event.content)})


def _check_model(event: Event) -> None:
    key: Any = event.model._meta.primary_key
    if not key or event.model._meta.composite_key:
        raise EventError(f"its model {event.model.__name__} has no primary key of one column")
    if key.name not in event.model.__dict__ or key.auto_increment:
        raise EventError(f"its model {event.model.__name__} must declare its primary key: the message says it")
    if key.field_type not in (*_INTEGERS, *_COLUMN_TEXTS):
        raise EventError(f"its model's primary key {key.name} must be an integer or a text")
    for name, each in event.model._meta.fields.items():
        if name != each.column_name:
            raise EventError(f"a column of its model {event.model.__name__} must have the name of its field")
        if each.field_type not in COLUMN_TYPES:
            raise EventError(
                f"column {name} of its model {event.model.__name__} is a {type(each).__name__}, and a value must come back "
                "as it was written: declare a text, an integer, a float, bytes or a boolean"
            )
        if hasattr(Model, name):
            raise EventError(f"its model {event.model.__name__} must have no field {name}: it hides what Peewee calls")


def _check_names(event: Event, fields: set[str]) -> None:
    if event.subject is not None:
        if event.subject not in fields:
            raise EventError(f"its subject {event.subject} is no field of {event.content.__name__}")
        if event.subject not in event.columns:
            raise EventError(
                f"its subject {event.subject} is no column of {event.model.__name__}, and an erasure looks there"
            )
        _check_subject(event, event.types[event.subject] - {inspect.NoneType}, event.subject)
    for name in event.unsaid:
        if name not in fields or name not in event.columns:
            raise EventError(f"unsaid names {name}, which is not both a field and a column")
    _check_updates(event, fields)


def _check_subject(event: Event, types: Set[type[inspect.Type]], subject: str) -> None:
    """An erasure looks for the one text or number that a subject is, in the list, in receipts and in the column."""
    column = event.model._meta.fields[subject]
    for kind, said, columns in ((inspect.IntType, "integer", _INTEGERS), (inspect.StrType, "text", _COLUMN_TEXTS)):
        if types == {kind}:
            if column.field_type not in columns:
                raise EventError(f"its subject {subject} is of type {said}, and the column of that name is not")
            return
    raise EventError(f"its subject {subject} must be an integer, or a text, and it may be null")


def _check_updates(event: Event, fields: set[str]) -> None:
    if event.when_there not in get_args(WhenThere):
        raise EventError(f"when_there must be one of {', '.join(get_args(WhenThere))}")
    if event.version is not None and event.version not in fields:
        raise EventError(f"its version {event.version} is no field of {event.content.__name__}")
    if event.version is not None and event.when_there == "newest" and event.types[event.version] != {inspect.IntType}:
        raise EventError(f"its version {event.version} must be an integer, and not null: it orders the messages")
    if event.sets is not None and event.when_there == "keep":
        raise EventError("sets is for an event whose when_there is newest")
    for name in (*(event.sets or ()), *((event.gone,) if event.gone else ())):
        if name not in event.columns or name == event.key:
            raise EventError(f"{name} is no column of {event.model.__name__} beside its key")


def _fields(content: type[msgspec.Struct]) -> Sequence[inspect.Field]:
    try:
        kind = inspect.type_info(content)
        msgspec.json.Decoder(content)
    except (TypeError, NameError) as error:
        raise EventError(f"{content.__name__} cannot be decoded strictly: {error}") from None
    if not isinstance(kind, inspect.StructType) or kind.array_like:
        raise EventError(f"{content.__name__} must be read from a JSON object, not an array")
    if kind.tag is not None:
        raise EventError(f"{content.__name__} must have no tag: the attribute event_type says what a message is")
    for each in kind.fields:
        if any(isinstance(inner, inspect.CustomType) for inner in _inner(each.type)):
            raise EventError(f"{content.__name__} cannot be decoded strictly: JSON has no type for its field {each.name}")
    return kind.fields


def _inner(kind: inspect.Type) -> Iterator[inspect.Type]:
    """The type, and the types that it holds, but not those within another struct."""
    yield kind
    held: list[Any] = [getattr(kind, name, None) for name in ("type", "item_type", "key_type", "value_type")]
    for name in ("types", "item_types"):
        held.extend(getattr(kind, name, ()))
    for each in held:
        if isinstance(each, inspect.Type):
            yield from _inner(each)


def _types(kind: inspect.Type) -> Set[type[inspect.Type]]:
    return {type(each) for each in _inner(kind)} - {inspect.UnionType, inspect.Metadata}


def _written(kind: inspect.Type) -> Literal["integer", "number", "text", "truth", "json"]:
    kinds = _types(kind) - {inspect.NoneType}
    if kinds == {inspect.IntType}:
        return "integer"
    if kinds and kinds <= {inspect.FloatType, inspect.IntType}:
        return "number"
    if kinds == {inspect.BoolType}:
        return "truth"
    return "text" if kinds and kinds <= _TEXTS else "json"


def _words(kind: inspect.Type) -> str:
    """What a value must be, for a person: `an integer between 1 and 5, or null`."""
    kinds = list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]
    known = [each for each in kinds if not isinstance(each, inspect.NoneType)]
    words = " or ".join(_one(each) for each in known) or "null"
    if len(known) == len(kinds):
        return words
    return f"{words}, or null" if "," in words or " and " in words else f"{words} or null"


def _one(kind: inspect.Type) -> str:  # noqa: C901  # one case for each type
    said = None
    if isinstance(kind, inspect.Metadata):
        said, kind = (kind.extra_json_schema or {}).get("description"), kind.type
    match kind:
        case inspect.IntType():
            return (said or "an integer") + _between(kind.ge, kind.gt, kind.le, kind.lt, said=bool(said))
        case inspect.FloatType():
            return (said or "a number") + _between(kind.ge, kind.gt, kind.le, kind.lt, said=bool(said))
        case inspect.StrType():
            return (said or "a string") + _length(kind, said=bool(said))
        case inspect.BoolType():
            return said or "true or false"
        case inspect.LiteralType():
            return said or f"one of {', '.join(map(str, kind.values))}"
        case inspect.EnumType():
            return said or f"one of {', '.join(str(each.value) for each in kind.cls)}"
        case inspect.DateTimeType():
            return said or "an RFC 3339 time with a zone"
        case inspect.ListType() | inspect.SetType() | inspect.FrozenSetType() | inspect.VarTupleType() | inspect.TupleType():
            return said or "an array"
        case inspect.DictType() | inspect.StructType():
            return said or "an object"
        case _:
            return said or _OTHER_WORDS.get(type(kind), type(kind).__name__.removesuffix("Type").lower())


def _length(kind: inspect.StrType, *, said: bool) -> str:
    least, most = kind.min_length or 0, kind.max_length
    words = ""
    if most is not None:
        words = f" of {least} to {most} characters" if least else f" of at most {most} characters"
    elif least:
        words = f" of at least {least} characters"
    return words if said or kind.pattern is None else f"{words} that matches {kind.pattern}"


def _between(ge: float | None, gt: float | None, le: float | None, lt: float | None, *, said: bool) -> str:
    comma = "," if said else ""
    if ge is not None and le is not None:
        return f"{comma} between {ge} and {le}"
    low = f"at least {ge}" if ge is not None else f"more than {gt}" if gt is not None else ""
    high = f"at most {le}" if le is not None else f"less than {lt}" if lt is not None else ""
    words = " and ".join(filter(None, (low, high)))
    return f"{comma} {words}" if words else ""


def _check_text(content: msgspec.Struct) -> None:
    """Refuse what no column takes in a string, wherever it stands.

    Raises:
        MessageError: A string holds a NUL or a lone surrogate.
    """
    for name in content.__struct_fields__:
        for text in _texts(getattr(content, name)):
            if "\0" in text:
                raise MessageError(Reason.BAD_TEXT, f"{name} must not contain a NUL character", name)
            try:
                text.encode()
            except UnicodeEncodeError:
                raise MessageError(Reason.BAD_TEXT, f"{name} must not contain a lone surrogate", name) from None


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case msgspec.Struct():
            for name in value.__struct_fields__:
                yield from _texts(getattr(value, name))
        case Mapping():
            for key, each in value.items():
                yield from _texts(key)
                yield from _texts(each)
        case list() | tuple() | set() | frozenset():
            for each in value:
                yield from _texts(each)
