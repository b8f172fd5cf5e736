"""What a queue can be made to carry, and what may come instead: bodies, each with what must become of it. Deterministic.

Two kinds of bad body. Message data, in a wrapper as Pub/Sub makes it or without one: acknowledged, and stored or kept with
the reason that docs/message-format.md gives. And bodies that are no push: 400 or 413, and nothing is stored. What is
expected is written down here; the worker is not asked. Every text that would be a user's holds `MARK`, which no
log may show.
"""

import base64
import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MARK: Final = "s3cret"
SEED: Final = 20_260_101
TIME: Final = "2024-01-02T03:04:05.678Z"
MILLISECONDS: Final = 1_704_164_645_678
DATA_MAX: Final = 10_000_000
BODY_MAX: Final = 14_000_000
DEEP: Final = 100_000
UNWRAPPED_EVERY: Final = 3
"""Which part of the data comes without a wrapper as well."""
FIRST_USER: Final = 7_000_000_000_000
"""The first of the user ids here; no damage makes one of them a small one."""

_numbers = itertools.count(1)


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


@dataclass(frozen=True)
class NoPush:
    """Nothing is stored. `tag` is the message id that a reader might have found."""

    status: int = 400
    tag: str = ""


@dataclass(frozen=True)
class Row:
    """Acknowledged, and the row is there."""

    message_id: str
    key: int | str
    columns: dict[str, Any] = field(default_factory=dict)
    table: str = "users"

    @property
    def subject(self) -> str:
        """Whose data it is."""
        return str(self.columns["customer_id"] if self.table == "orders" else self.key)


@dataclass(frozen=True)
class Kept:
    """Acknowledged, and kept with one of these reasons and exactly these bytes."""

    message_id: str
    reasons: frozenset[str]
    data: bytes
    attributes: dict[str, str] = field(default_factory=dict)
    publish_time: int = MILLISECONDS


@dataclass(frozen=True)
class Damaged:
    """Refused, and nothing is stored; or acknowledged, and it has a fate that fits what can be read in it."""

    tag: str


Fate = NoPush | Row | Kept | Damaged


@dataclass(frozen=True)
class Hostile:
    """One request's body, and what must become of it."""

    name: str
    body: bytes
    fate: Fate
    headers: dict[str, str] = field(default_factory=dict)


def corpus() -> list[Hostile]:
    """All of them, the same at every call."""
    global _numbers
    _numbers = itertools.count(1)
    found = [*_of_data(), *attributes(), *message_ids(), *times(), *wrappers(), *no_json(), *damaged(), *too_large()]
    names = [each.name for each in found]
    assert len(set(names)) == len(names), "two bodies have one name"
    return found


def largest(count: int) -> list[Hostile]:
    """So many of the largest messages there can be, in turn stored and kept."""
    bodies = []
    for number in range(count):
        name, user = f"largest {number}", new_user()
        head = b'{"user_id":%d,"settings":"%s' % (user, mark().encode())
        data = head.ljust(DATA_MAX - 2, b"x") + (b'"}' if number % 2 else b"xx")
        fate: Fate = Row(tag_of(name), user) if number % 2 else Kept(tag_of(name), frozenset(["not_json"]), data)
        bodies.append(Hostile(name, wrap(tag_of(name), data), fate))
    return bodies


# Making pushes.


def mark() -> str:
    """A user's text, another each time."""
    return f"{MARK}-{next(_numbers)}"


def new_user() -> int:
    """A user id, another each time."""
    return FIRST_USER + next(_numbers)


def tag_of(name: str) -> str:
    """A message id that no flipped bit makes another's."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def good_data(user_id: int) -> bytes:
    """A message that keeps to the format."""
    return json.dumps({"user_id": user_id, "email_address": mark(), "settings": f'{{"é": "{mark()}"}}'}).encode()


def good_order(customer_id: int) -> bytes:
    """A message of another event that keeps to its format."""
    return json.dumps({"order_id": tag_of(mark()), "customer_id": customer_id, "total_cents": 1, "note": mark()}).encode()


def fields(message_id: str, data: bytes, /, **others: Any) -> dict[str, Any]:
    """A message as the wrapper holds it; `...` leaves a field out."""
    inner = {
        "data": base64.b64encode(data).decode(),
        "messageId": message_id,
        "message_id": message_id,
        "publishTime": TIME,
        "publish_time": TIME,
        **others,
    }
    return {name: value for name, value in inner.items() if value is not ...}


def wrap(message_id: str, data: bytes, /, *, around: dict[str, Any] | None = None, **others: Any) -> bytes:
    """A push body."""
    body = {"message": fields(message_id, data, **others), "subscription": "projects/p/subscriptions/s", **(around or {})}
    return json.dumps(body).encode()


# Message data: name, bytes, and the reasons it may be kept for; or the columns of its row.

Columns = dict[str, Any]
Data = tuple[str, bytes, str | Columns]


def _of_data() -> Iterator[Hostile]:
    every = itertools.chain(
        numbers(), no_numbers(), wrong_types(), encodings(), texts(), shapes(), depths(), scraps(), large()
    )
    for place, (name, data, wanted) in enumerate(every):
        tag = tag_of(name)
        yield Hostile(name, wrap(tag, data), _fate(tag, data, wanted))
        if isinstance(wanted, str) and place % UNWRAPPED_EVERY == 0:
            tag = tag_of(f"{name}, unwrapped")
            headers = {"x-goog-pubsub-message-id": tag, "x-goog-pubsub-publish-time": TIME}
            yield Hostile(f"{name}, unwrapped", data, _fate(tag, data, wanted), headers)


def _fate(tag: str, data: bytes, wanted: str | Columns) -> Fate:
    if isinstance(wanted, str):
        return Kept(tag, frozenset(wanted.split("|")), data)
    return Row(tag, wanted["user_id"], wanted)


def around(place: str, raw: bytes) -> bytes:
    """A message with these bytes as the value of a field, and a user's text beside it."""
    start = b"" if place == "user_id" else b'"user_id":%d,' % new_user()
    beside = b"" if place == "email_address" else b',"email_address":"%s"' % mark().encode()
    return b'{%s"%s":%s%s}' % (start, place.encode(), raw, beside)


PLACES: Final = ("user_id", "email_address", "settings", "created_at", "unknown")
BEYOND: Final = [
    str(number) for number in (2**63, 2**64, 2**64 - 1, -(2**63), -(2**63) - 1, -(2**64), 10**19, 10**20, 10**100, -1, -2)
]
LONG: Final = {"5,000 digits": "9" * 5000, "-5,000 digits": "-" + "9" * 5000, "100,000 digits": "1" * 100_000}
NO_NUMBER: Final = _words(
    "NaN nan -NaN Infinity -Infinity inf -inf 01 00 -01 +1 .5 5. 5.e1 1e 1e+ 1E- - -- 0x10 0b1 1_000 5L 5n '5' ` "
    "undefined None True FALSE Null nul tru \u0665 \uff15 \xb2 1,2 1;2 (5) <5> @ # $5 %35 \\u0035 [5 {5} [5,] [,] {,} {a:1} "
    '{"a"} {"a":} {"a":1,} "a "\\q" "\\u12" "\\x41" "\\ u0041" //5 /**/5 5/**/'
)


def numbers() -> Iterator[Data]:
    """Integers that are too small, too large, or as long as a line; and the largest ones that are not."""
    for raw in [*BEYOND, "0", "-0"]:
        yield f"user_id {raw[:30]} of {len(raw)}", around("user_id", raw.encode()), "out_of_range"
    for raw in [*BEYOND, "253402300800", "1767225600000"]:
        yield f"created_at {raw[:30]} of {len(raw)}", around("created_at", raw.encode()), "out_of_range"
    for name, raw in LONG.items():
        for place in PLACES[:4]:
            reason = "out_of_range" if place in ("user_id", "created_at") else "wrong_type"
            yield f"{name} as {place}", around(place, raw.encode()), reason
        user = new_user()
        yield f"{name} as unknown", b'{"unknown":%s,"user_id":%d}' % (raw.encode(), user), {"user_id": user}
    for user, time in ((2**63 - 1, 253402300799), (2**62, 0)):
        data = json.dumps({"user_id": user, "created_at": time}).encode()
        yield f"user_id {user} at its limit", data, {"user_id": user, "created_at": time}


def no_number(raw: str) -> str:
    """The reasons for one of NO_NUMBER: what begins like a value may be told by its type or range before its end is seen."""
    if raw[0] in "-0":
        return "not_json|wrong_type|out_of_range"
    return "not_json|wrong_type" if raw[0] in '[{"15' else "not_json"


def no_numbers() -> Iterator[Data]:
    """What looks like a value and is no JSON, in every field and in one that is skipped."""
    for place in PLACES:
        for raw in NO_NUMBER:
            yield f"{place} is {raw}", around(place, raw.encode()), no_number(raw)


def wrong_types() -> Iterator[Data]:
    """JSON of another type than the field's."""
    text = json.dumps(mark())
    everywhere = ["true", "false", "[]", "{}", "[5]", '{"a":5}', f"[{text}]", f'{{"string":{text}}}', "0.1", "-1.5", "1e999"]
    integers = [
        "null",
        "5.0",
        "5.5",
        "1e3",
        "1E400",
        "-1e400",
        "0e0",
        "-0.0",
        '"5"',
        '""',
        text,
        '"2024-01-01"',
        '"\\u0035"',
    ]
    for place, values in (
        ("user_id", [*everywhere, *integers]),
        ("created_at", [*everywhere, *integers[1:]]),
        ("email_address", [*everywhere, "5", "0", "-1"]),
        ("settings", [*everywhere, "5", "0", "-1"]),
    ):
        for raw in values:
            yield f"{place} of type {raw}", around(place, raw.encode()), "wrong_type"
    for raw in ["null", "5", "-1.5e300", "true", text, f"[{text}]", f'{{"user_id":{text}}}', "[" * 100 + "]" * 100]:
        user = new_user()
        yield f"unknown of {raw[:20]}", b'{"user_id":%d,"unknown":%s}' % (user, raw.encode()), {"user_id": user}


BAD_UTF_8: Final = [
    bytes.fromhex(digits)
    for digits in _words(
        "80 bf c080 c0af c1bf c3 c328 e08080 e09fbf e282 e28228 eda080 edafbf edb080 edbfbf eda0bdedb880 f0808080 f08fbfbf",
        "f09f98 f0288cbc f4908080 f5808080 f888808080 fc8480808080 fe ff fffe",
    )
]


def encodings() -> Iterator[Data]:
    """Not UTF-8, anywhere; byte order marks; other encodings of Unicode."""
    for bad in BAD_UTF_8:
        name = bad.hex()
        for place in ("email_address", "settings", "unknown"):
            yield f"{name} in {place}", around(place, b'"%s%s"' % (mark().encode(), bad)), "not_utf8"
        user = new_user()
        yield f"{name} in a key", b'{"user_id":%d,"%s":1}' % (user, bad), "not_utf8"
        yield f"{name} before", bad + good_data(user), "not_utf8"
        yield f"{name} after", good_data(user) + bad, "not_utf8"
        yield f"{name} alone", bad, "not_utf8"
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig", "cp037", "utf-7"):
        encoded = good_data(new_user()).decode().encode(codec)
        if codec != "utf-7":  # of which this text's braces are no JSON, and for which nothing can be told otherwise
            yield f"in {codec}", encoded, "not_json|not_utf8|not_an_object"


SURROGATES: Final = _words(
    r"\ud800 \udbff \udc00 \udfff \ud800\ud800 \ud800x \ud800\u0041 \udc00\ud800 \ud83d\ud83d\ude00 \uD800\n"
)


def texts() -> Iterator[Data]:
    """Text that cannot be stored, and text that only looks so."""
    for escaped in SURROGATES:
        for place in ("email_address", "settings"):
            yield f"{escaped} in {place}", around(place, f'"{mark()}{escaped}"'.encode()), "bad_text|not_json"
    for place in ("email_address", "settings"):
        for shape in ("\\u0000", "\\u0000{}", "{}\\u0000", "{0}\\u0000{0}"):
            yield f"{shape} in {place}", around(place, f'"{shape.format(mark())}"'.encode()), "bad_text"
    for control in range(32):
        for place in ("email_address", "settings", "unknown"):
            raw = b'"%s%c"' % (mark().encode(), control)
            yield f"raw control character {control} in {place}", around(place, raw), "not_json"
    for odd in [
        "\x7f",
        "\u0085",
        "\u2028",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
        "😀",
        "'; DROP TABLE users; --",
        '\\"',
        "",
        " ",
    ]:
        for ascii_only in (False, True):
            user, text = new_user(), f"{mark()}{odd}"
            data = json.dumps({"user_id": user, "settings": text}, ensure_ascii=ascii_only).encode()
            yield f"{odd!r} in settings, escaped: {ascii_only}", data, {"user_id": user, "settings": text}
    user = new_user()
    yield "NUL in what is skipped", b'{"user_id":%d,"a\\u0000":"\\u0000"}' % user, {"user_id": user}


def shapes() -> Iterator[Data]:
    """No object, half an object, more than an object, twice the same key."""
    for raw in [
        "null",
        "true",
        "5",
        "-0.5",
        '""',
        json.dumps(mark()),
        "[]",
        "[[]]",
        f"[{json.dumps(mark())}]",
        '[{"user_id":5}]',
    ]:
        yield f"{raw} alone", raw.encode(), "not_an_object"
    for raw in [
        "",
        " ",
        "\n\t\r ",
        "{",
        "}",
        "{{}}",
        "{]",
        '{"user_id"',
        '{"user_id":',
        '{"user_id":}',
        '{"user_id":5',
        "}{",
    ]:
        yield f"{raw!r} alone", raw.encode(), "not_json"
    for raw in [
        "{}",
        f'{{"email_address":{json.dumps(mark())}}}',
        '{"User_id":5}',
        '{"user_id ":5}',
        '{"user_id\\u0000":5}',
        '{"":5}',
    ]:
        yield f"{raw} has no user id", raw.encode(), "missing_field"
    for tail in ["x", "{}", ",", ";", "\0", "]", "}", "null", "//", "\\", '"', "\ufeff", "\u00a0", mark()]:
        yield f"{tail!r} behind", good_data(new_user()) + tail.encode(), "not_json"
    for head in ["\ufeff", "\0", ",", ")]}',\n", "\u00a0", "x=", "<?xml?>", "\x1e", "'"]:
        yield f"{head!r} before", head.encode() + good_data(new_user()), "not_json"
    good = good_data(new_user())
    yield "in single quotes", good.replace(b'"', b"'"), "not_json"
    yield "in base64 once more", base64.b64encode(good), "not_json|not_an_object"
    yield "compressed", b"\x1f\x8b\x08\x00" + good, "not_utf8"
    for cut in range(1, len(good)):
        yield f"cut after {cut} bytes", good[:cut], "not_json"
    yield from _twice()


def _twice() -> Iterator[Data]:
    first, users, text = new_user(), [new_user() for _ in range(4)], mark()
    data = b'{"user_id":%d,"user_id":%d,"settings":"a","settings":"%s"}' % (first, users[0], text.encode())
    yield "keys twice", data, {"user_id": users[0], "settings": text}
    yield "a key twice, once in disguise", b'{"user_id":%d,"\\u0075ser_id":%d}' % (first, users[1]), {"user_id": users[1]}
    yield "a key twice, then null", b'{"user_id":%d,"user_id":null}' % first, "wrong_type"
    yield "a key twice, then none", b'{"user_id":%d,"user_id":0}' % first, "out_of_range"
    yield "a key 50,000 times", b"{%s}" % b",".join([b'"user_id":%d' % users[2]] * 50_000), {"user_id": users[2]}
    keys = b",".join(b'"k%d":%d' % (number, number) for number in range(50_000))
    yield "50,000 keys", b'{%s,"user_id":%d}' % (keys, users[3]), {"user_id": users[3]}


def depths() -> Iterator[Data]:
    """Nested beyond what any reader goes into, closed and not, in every place."""
    for name, begin, middle, end in (("arrays", b"[", b"", b"]"), ("objects", b'{"a":', b"1", b"}")):
        for closed in (True, False):
            raw = begin * DEEP + (middle + end * DEEP if closed else b"")
            here = f"{DEEP} {name}, closed: {closed}"
            yield f"{here}, in unknown", around("unknown", raw), "not_json"
            yield f"{here}, alone", raw, "not_an_object" if begin == b"[" else "not_json"
            for place in PLACES[:4]:
                yield f"{here}, in {place}", around(place, raw), "wrong_type"


def scraps() -> Iterator[Data]:
    """Every single byte, and bytes of any kind: kept whole, whatever the reason."""
    reasons = "not_json|not_utf8|not_an_object|missing_field|wrong_type|out_of_range|bad_text"
    for byte in range(256):
        wanted = "not_utf8" if byte > 127 else "not_an_object" if byte in b"[0123456789" else "not_json"
        yield f"byte {byte}", bytes([byte]), wanted
    source = random.Random(SEED)
    for number in range(150):
        yield f"random bytes {number}", b"\xfe" + source.randbytes(source.randrange(2000)), "not_utf8"
        text = "".join(source.choices('{}[]",:\\0123456789eE+-.truefalsn \n', k=source.randrange(1, 200)))
        yield f"random JSON {number}", f"{text}{mark()}".encode(), reasons


def large() -> Iterator[Data]:
    """As large as Pub/Sub lets a message be, and one byte more."""
    user = new_user()
    head, tail = b'{"user_id":%d,"settings":"%s' % (user, mark().encode()), b'"}'
    full = head + b"x" * (DATA_MAX - len(head) - len(tail)) + tail
    yield "10,000,000 bytes", full, {"user_id": user}
    yield "10,000,001 bytes", full + b" ", "too_large"
    yield "10 MB of no JSON", mark().encode() * 800_000, "not_json"
    yield "10 MB of digits", b'{"user_id":%s}' % (b"9" * (DATA_MAX - 12)), "out_of_range"
    yield "10 MB of brackets", b"[" * DATA_MAX, "not_an_object"


# The wrapper: attributes, ids, times, and everything else in it.


def kept(name: str, data: bytes = b"{", /, *, reason: str = "not_json", **others: Any) -> Hostile:
    """A push whose message is malformed, and which is kept whatever else is in it."""
    tag = tag_of(name)
    fate = Kept(tag, frozenset([reason]), data, others.get("attributes") or {})
    return Hostile(name, wrap(tag, data, **others), fate)


def created(name: str, **others: Any) -> Hostile:
    """A push whose message is good, and which is stored whatever else is in it."""
    tag, user = tag_of(name), new_user()
    return Hostile(name, wrap(tag, good_data(user), **others), Row(tag, user))


def refused(name: str, body: bytes | None = None, **others: Any) -> Hostile:
    """A body that is no push, or a wrapper that nobody's push has."""
    tag = tag_of(name)
    return Hostile(name, wrap(tag, good_data(new_user()), **others) if body is None else body, NoPush(tag=tag))


ODD: Final = (
    "'",
    '"',
    "\\",
    "/",
    "//",
    "?a=1#b",
    "%2F",
    "%",
    "\n",
    "\r\nX: y",
    "\t",
    "\0",
    "\x1b[31m",
    "\x7f",
    " ",
    "é",
    "e\u0301",
    "日本語",
    "😀",
    "\u202e",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    "'; DROP TABLE users; --",
    "' OR '1'='1",
    "/retry",
    "/../..",
    "{}",
    "%s%n",
    "${jndi:ldap://127.0.0.1}",
    "<script>",
    "=1+1",
)
"""Text that some reader takes for more than text."""


def attributes() -> Iterator[Hostile]:
    """Kept with the message, however odd; refused where they are no texts."""
    for event in [
        "",
        "user.renamed",
        "User.Created",
        "user.created ",
        " user.created",
        "user.created\0",
        "null",
        mark(),
        "é",
    ]:
        yield kept(f"event type {event!r}", good_data(new_user()), reason="unknown_event", attributes={"event_type": event})
    yield kept("another event type without data", b"", reason="unknown_event", attributes={"event_type": mark()})
    for odd in ODD:
        yield kept(f"attributes {odd!r}", attributes={odd: mark(), mark(): odd, "Event_Type": odd})
    yield kept("no data but attributes", b"", attributes={"email_address": mark()}, data=...)
    yield kept("empty attributes", b"", attributes={"": ""})
    yield kept("1,000 attributes", attributes={f"key{number}": mark() for number in range(1000)})
    yield kept("5 MB of attributes", attributes={"a": mark() + "x" * 5_000_000})
    yield created("null as attributes", attributes=None)
    for wrong in [
        5,
        True,
        "a",
        ["a"],
        {"a": 5},
        {"a": None},
        {"a": {"b": mark()}},
        {"a": [mark()]},
        {"a": 10**400},
        {"a": "\ud800"},
    ]:
        yield refused(f"attributes {str(wrong)[:12]!r}", attributes=wrong)
    yield refused("attributes with a lone surrogate as key", attributes={"\udc00": "a"})


def message_ids() -> Iterator[Hostile]:
    """Any text from 1 to 1024 characters, none of them of control, is an id, and is kept letter for letter."""
    for odd in ODD:
        if any(character < " " or character == "\x7f" for character in odd):
            yield refused(f"id {odd!r}", wrap(tag_of(f"id {odd!r}") + odd, good_data(new_user())))
            continue
        tag, user = tag_of(f"id {odd!r}"), new_user()
        yield Hostile(f"id {odd!r}", wrap(tag + odd, good_data(user)), Row(tag + odd, user))
        for where, odd_id in (("before", odd + tag), ("alone", odd)):
            yield Hostile(f"id {odd!r} {where}", wrap(odd_id, b"{"), Kept(odd_id, frozenset(["not_json"]), b"{"))
    for odd in [".", "..", "null", "0", "retry", "x" * 1024, "é" * 1024, "😀" * 1024]:
        yield Hostile(f"id {odd[:20]} of {len(odd)}", wrap(odd, b"{"), Kept(odd, frozenset(["not_json"]), b"{"))
    yield created("only messageId", message_id=...)
    yield created("only message_id", messageId=...)
    yield created("an empty messageId", messageId="")
    yield created("another message_id", message_id="another")
    yield refused("no id", messageId=..., message_id=...)
    yield refused("empty ids", messageId="", message_id="")
    others: list[Any] = [None, 5, 0, True, 5.0, [], {}, ["m1"], 10**400, "\ud800", "a\udc00"]
    for wrong in [*others, "x" * 1025, "😀" * 1025, "x" * 10**6]:
        yield refused(f"id {str(wrong)[:12]!r} of {type(wrong)} {len(str(wrong))}", messageId=wrong)
        yield refused(f"second id {str(wrong)[:12]!r} of {type(wrong)} {len(str(wrong))}", message_id=wrong)


GOOD_TIMES: Final = {
    "1970-01-01T00:00:00Z": 0,
    "1970-01-01T00:00:00.001Z": 1,
    "1970-01-01T01:00:00+01:00": 0,
    "1969-12-31T23:59:00-00:01": 0,
    "9999-12-31T23:59:59Z": 253402300799000,
    "9999-12-31T23:59:59.999Z": 253402300799999,
    "2000-02-29T00:00:00Z": 951782400000,
    "2024-01-02T03:04:05.678000000Z": MILLISECONDS,
    "2024-01-02T05:04:05.678+02:00": MILLISECONDS,
    "2024-01-02T03:04:05.678-00:00": MILLISECONDS,
}
NO_TIMES: Final = (
    *("", " ", "Z", "now", "0", "1704164645", "2024", "2024-01-02", "03:04:05Z", "20240102T030405Z", "2024-01-02T03:04Z"),
    *(
        "2024-01-02T03:04:05",
        "2024-01-02T03:04:05.678",
        "2024-01-02T03:04:60Z",
        "2016-12-31T23:59:60Z",
        "2024-01-02T24:00:00Z",
    ),
    *(
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-00-01T00:00:00Z",
        "2024-01-00T00:00:00Z",
        "2024-04-31T00:00:00Z",
    ),
    *("0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00-23:59"),
    *("1969-12-31T23:59:59Z", "1970-01-01T00:00:00+00:01", "-2024-01-02T03:04:05Z", "+2024-01-02T03:04:05Z"),
    *("9999-12-31T23:59:59-00:01", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59.9999999Z", "10000-01-01T00:00:00Z"),
    *("2024-01-02T03:04:05+24:00", "2024-01-02T03:04:05+1", "2024-01-02T03:04:05 UTC", "2024-01-02T03:04:05ZZ", MARK),
    *(
        " 2024-01-02T03:04:05Z",
        "2024-01-02T03:04:05Z ",
        "2024-01-02T03:04:05.Z",
        "2024-01-02T03:04:05,5Z",
        "\u0662024-01-02T03:04:05Z",
    ),
    *("2024-W01-2T03:04:05Z", "2024-002T03:04:05Z", "2024-01-02T3:04:05Z", "2024-01-02T03:04:05Z\0", "\ud800", "9" * 5000),
)


def times() -> Iterator[Hostile]:
    """From 1970 to 9999 with a zone; nothing else is a publish time."""
    for text, milliseconds in GOOD_TIMES.items():
        name = f"published {text}"
        body = wrap(tag_of(name), b"{", publishTime=text, publish_time=...)
        yield Hostile(name, body, Kept(tag_of(name), frozenset(["not_json"]), b"{", {}, milliseconds))
        headers = {"x-goog-pubsub-message-id": tag_of(name + "h"), "x-goog-pubsub-publish-time": text}
        fate = Kept(tag_of(name + "h"), frozenset(["not_json"]), b"[1", {}, milliseconds)
        yield Hostile(f"{name}, in a header", b"{", Kept(fate.message_id, fate.reasons, b"{", {}, milliseconds), headers)
    for wrong in [*NO_TIMES, 1704164645, 1704164645.678, True, [], {}, [TIME], 10**400]:
        yield refused(f"published {str(wrong)[:30]!r} of {type(wrong)}", publishTime=wrong, publish_time=...)
        yield refused(f"also published {str(wrong)[:30]!r} of {type(wrong)}", publishTime=..., publish_time=wrong)
    for text in [text for text in NO_TIMES if text.isascii() and text.isprintable() and text == text.strip()]:
        headers = {"x-goog-pubsub-message-id": tag_of(text), "x-goog-pubsub-publish-time": text}
        yield Hostile(f"published {text[:30]!r}, in a header", b"{", NoPush(tag=tag_of(text)), headers)
    yield refused("not published", publishTime=..., publish_time=...)
    yield refused("published null", publishTime=None, publish_time=None)
    for text in ["2024-01-02 03:04:05Z", "2024-01-02t03:04:05z", "2024-01-02T03:04:05+0000", "9999-12-31T23:59:59.9996Z"]:
        name = f"nearly published {text}"
        yield Hostile(name, wrap(tag_of(name), good_data(new_user()), publishTime=text), Damaged(tag_of(name)))


NO_BASE_64: Final = (
    *(
        "e30",
        "e3",
        "e",
        "=",
        "==",
        "====",
        "e30==",
        "e30===",
        "e30=e30=",
        "e30=\n",
        "\ne30=",
        "e3\r\n0=",
        "e3 0=",
        " e30=",
        "e30= ",
    ),
    *(
        "e30-",
        "_-8=",
        "-_-_",
        "e30*",
        "e30.",
        "e30,",
        "é30=",
        "e30\0",
        "e30=\0",
        "\u2028",
        "data:;base64,e30=",
        "%65%33%30=",
        "{}",
    ),
)


def wrappers() -> Iterator[Hostile]:
    """Everything else in it: what is text, what is a count, what is unknown, what is there twice."""
    for text in NO_BASE_64:
        yield refused(f"data {text!r}", data=text)
    for wrong in [5, True, [], {}, ["e30="], 10**400, "\ud800"]:
        yield refused(f"data {str(wrong)[:12]!r} of {type(wrong)}", data=wrong)
        yield refused(f"ordering key {str(wrong)[:12]!r} of {type(wrong)}", orderingKey=wrong)
        yield refused(f"subscription {str(wrong)[:12]!r} of {type(wrong)}", around={"subscription": wrong})
    yield kept("null as data", b"", data=None)
    yield kept("empty data", b"", data="")
    for odd in [*ODD, "", "x" * 10**6]:
        yield created(f"ordering key {odd[:20]!r} of {len(odd)}", orderingKey=odd + mark())
        yield created(f"subscription {odd[:20]!r} of {len(odd)}", around={"subscription": odd + mark()})
    for count in [0, 1, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, None]:
        yield created(f"delivery attempt {count}", around={"deliveryAttempt": count})
    for wrong in ["1", 1.0, 1.5, True, [], {}, "9" * 5000]:
        yield refused(f"delivery attempt {str(wrong)[:12]!r} of {type(wrong)}", around={"deliveryAttempt": wrong})
    values: list[Any] = [5, None, [mark()], {"message": mark()}, 10**400, "x" * 10**6, [[[]]]]
    for value in values:
        yield created(f"unknown {str(value)[:12]!r} inside", unknown=value)
        yield created(f"unknown {str(value)[:12]!r} outside", around={"unknown": value})
    for wrong in [None, 5, True, "text", mark(), [], [{}], {}, {"data": mark()}, {"messageId": "m1"}]:
        yield refused(f"{wrong!r} as message", json.dumps({"message": wrong}).encode())
        yield refused(f"{wrong!r} as push", json.dumps(wrong).encode())
    one, two, user = wrap("first-of-two", good_data(new_user())), tag_of("second of two"), new_user()
    both = one[:-1] + b"," + wrap(two, good_data(user))[1:]
    yield Hostile("two messages in one", both, Row(two, user))
    for name, digits in LONG.items():
        yield refused(f"delivery attempt of {name}", one[:-1] + b',"deliveryAttempt":%s}' % digits.encode())


# Bodies that are no push.


def no_json() -> Iterator[Hostile]:
    """Cut off, wrongly encoded, with something around it, nested, or anything at all."""
    whole = wrap(
        tag_of("whole"), good_data(new_user()), attributes={"event_type": "user.created", "é": "é"}, orderingKey="k"
    )
    for cut in range(len(whole)):
        yield Hostile(f"push cut after {cut} bytes", whole[:cut], NoPush(tag=tag_of("whole")))
    for head in [b"\xef\xbb\xbf", b"\0", b",", b"x", b"\xff", b"[", b"data=", b"--boundary\r\n\r\n"]:
        yield Hostile(f"{head!r} before the push", head + whole, NoPush(tag=tag_of("whole")))
    for tail in [b"\0", b",", b"x", b"\xff", b"]", b"}", b"{}", b"\xef\xbb\xbf", whole]:
        yield Hostile(f"{tail[:20]!r} behind the push", whole + tail, NoPush(tag=tag_of("whole")))
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037"):
        yield Hostile(f"push in {codec}", whole.decode().encode(codec), NoPush(tag=tag_of("whole")))
    for name, raw in {
        "arrays": b"[" * DEEP,
        "objects": b'{"message":' * DEEP,
        "data": b'{"message":{"data":' + b"[" * DEEP,
    }.items():
        yield refused(f"{DEEP} {name} as push", raw)
    for name, raw in {
        "arrays": b"[" * DEEP + b"]" * DEEP,
        "NaN": b"NaN",
        "-Infinity": b"-Infinity",
        "01": b"01",
        "tru": b"tru",
    }.items():
        yield refused(f"{name} as unknown field of the push", whole[:-1] + b',"unknown":%s}' % raw)
    for byte in range(256):
        yield refused(f"byte {byte} as push", bytes([byte]))
    source = random.Random(SEED)
    for number in range(100):
        yield refused(f"random bytes {number} as push", source.randbytes(source.randrange(3000)) + mark().encode())
    for name, bad in (("subscription", BAD_UTF_8[0]), ("unknown", BAD_UTF_8[-1])):
        tag = tag_of(f"not UTF-8 in {name}")
        body = wrap(tag, good_data(new_user()), around={name: "PLACE"}).replace(b"PLACE", bad)
        yield Hostile(f"not UTF-8 in {name}", body, Damaged(tag))


def damaged() -> Iterator[Hostile]:
    """Good pushes with bits flipped, bytes lost, doubled or put in."""
    source = random.Random(SEED + 1)
    for number in range(900):
        name = f"damaged {number}"
        made, event = (good_data, "user.created") if number // 6 % 2 else (good_order, "order.placed")
        body = bytearray(wrap(tag_of(name), made(new_user()), attributes={"event_type": event}))
        for _ in range(source.randrange(1, 4)):
            place = source.randrange(len(body))
            match number % 6:
                case 0:
                    del body[place : place + source.randrange(1, 5)]
                case 1:
                    body[place:place] = source.randbytes(source.randrange(1, 4))
                case 2:
                    body[place:place] = body[place : place + source.randrange(1, 40)]
                case _:
                    body[place] ^= 1 << source.randrange(8)
        yield Hostile(name, bytes(body), Damaged(tag_of(name)))


def too_large() -> Iterator[Hostile]:
    """At the limit of a body it is read; above it, it is not."""
    tag, user = tag_of("at the limit"), new_user()
    good = wrap(tag, good_data(user))
    yield Hostile("body at the limit", good.ljust(BODY_MAX), Row(tag, user))
    yield Hostile("no push at the limit", mark().encode().ljust(BODY_MAX, b"{"), NoPush(400))
    lost = tag_of("above the limit")
    yield Hostile("body above the limit", wrap(lost, good_data(new_user())).ljust(BODY_MAX + 1), NoPush(413, lost))
    yield Hostile("20 MB", mark().encode() * 2_000_000, NoPush(413))
