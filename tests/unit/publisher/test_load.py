"""`python -m publisher load` and `create`, with a sink that only remembers."""

import gzip
import json
import os
import random
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pytest

from publisher import cli, load, records
from publisher.errors import DeliveryError, RefusedError, TopicNotFoundError, UnreachableError, UsageError
from publisher.interrupt import Interrupt
from publisher.load import Loader, Summary
from publisher.message import Message
from publisher.progress import MAX_PROBLEMS_SHOWN
from publisher.records import BAD_CSV, LINE_TOO_LONG, CsvRows, JsonLines, Lines, Problem, Record
from publisher.settings import ENVIRONMENT, topic_path
from publisher.sink import OpenFutures, settle
from tests.entries import CATALOG
from worker.events.declaration import MAX_DATA_BYTES, MessageError, Reason
from worker.events.users import USER_CREATED, UserCreated

Answer = Callable[[UserCreated], str | DeliveryError | None]


def user_in(message: Message) -> UserCreated:
    """The user that a message creates."""
    assert isinstance(message.content, UserCreated)
    return message.content


class RecordingSink:
    """A sink in memory: `answer` says what the server does; None means that it never answers."""

    def __init__(self, answer: Answer = lambda user: f"m{user.user_id}", capacity: int = 10) -> None:
        self.answer = answer
        self.capacity = capacity
        self.patience = 5.0
        self.messages: list[Message] = []
        self.most_open = 0
        self.closed_after: list[float | None] = []
        self._open = OpenFutures()

    @property
    def users(self) -> list[UserCreated]:
        """The users of its messages."""
        return [user_in(message) for message in self.messages]

    def publish(self, message: Message) -> Future[str]:
        """Remember the message and answer at once, or never."""
        future = self._open.new()
        self.messages.append(message)
        self.most_open = max(self.most_open, len(self._open))
        outcome = self.answer(user_in(message))
        if outcome is not None:
            settle(future, outcome)
        return future

    def close(self, timeout: float | None = None) -> None:
        """Give up on everything at once."""
        self.closed_after.append(timeout)
        self._open.abandon(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class SilentReport:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str, str]] = []

    def problem(self, line: int, code: str, detail: str) -> None:
        """Remember it."""
        self.problems.append((line, code, detail))

    def tick(self, summary: Summary) -> None:
        """Nothing to show."""


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def sink() -> RecordingSink:
    """A sink that accepts everything."""
    return RecordingSink()


@pytest.fixture
def run(sink: RecordingSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `load FILE --json` on the given bytes: exit code, summary, stderr."""

    def open_sink(options: object, environment: Mapping[str, str], *, traced: bool) -> RecordingSink:
        return sink

    def go(data: bytes, *options: str, name: str = "users.jsonl") -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(cli, "open_sink", open_sink)
        path = tmp_path / name
        path.write_bytes(data)
        code = cli.main(["load", str(path), "--json", *options], {})
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else {}, printed.err

    return go


def json_records(data: bytes, limit: int = 1000) -> list[Record]:
    """Return the records of some JSON Lines."""
    return list(JsonLines(Lines(BytesIO(data), limit), USER_CREATED, CATALOG))


def csv_records(data: bytes, limit: int = 1000) -> list[Record]:
    """Return the records of some CSV."""
    return list(CsvRows(Lines(BytesIO(data), limit), USER_CREATED))


def only_problem(found: list[Record]) -> tuple[int, str]:
    """Return line and code of the one record that is wrong."""
    [(line, code)] = [(item.line, item.content.code) for item in found if isinstance(item.content, Problem)]
    return line, code


def user_of(record: Record) -> UserCreated:
    """Return the record's user, which must be there."""
    assert isinstance(record.content, Message), record.content
    return user_in(record.content)


# Reading JSON Lines


def test_json_lines_are_read_with_their_numbers() -> None:
    """Blank lines are skipped but counted, and the last line needs no line feed."""
    found = json_records(b'{"user_id":1}\n\n  \r\n{"user_id":2}')
    assert [(item.line, user_of(item).user_id) for item in found] == [(1, 1), (4, 2)]


def test_json_byte_order_mark_is_passed_over() -> None:
    """A file saved by a Windows editor loads like any other."""
    assert user_of(json_records(b'\xef\xbb\xbf{"user_id":1}\n')[0]).user_id == 1


def test_bad_json_line_leaves_its_neighbours_alone() -> None:
    """A line that is wrong carries its bytes and its reason; reading goes on behind it."""
    found = json_records(b'{"user_id":1}\n{"user_id":0}\n{"user_id":2}\n')
    assert only_problem(found) == (2, Reason.OUT_OF_RANGE)
    assert found[1].raw == b'{"user_id":0}\n'
    assert len(found) == 3


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_json_line_over_the_limit_is_not_kept(ending: bytes) -> None:
    """A line over the limit is a problem without its bytes, and the next line is read as itself."""
    found = json_records(b"x" * 3500 + ending + (b'{"user_id":2}' if ending else b""), limit=1000)
    assert only_problem(found) == (1, LINE_TOO_LONG)
    assert found[0].raw is None
    assert [item.line for item in found[1:]] == ([2] if ending else [])


def test_json_line_at_the_limit_is_read() -> None:
    """The limit counts the line feed and is inclusive."""
    line = b'{"user_id":1}\n'
    assert user_of(json_records(line, limit=len(line))[0]).user_id == 1


# Reading CSV


def test_csv_columns_may_stand_in_any_order() -> None:
    """The header says which cell is which; an empty cell is null."""
    found = csv_records(b"created_at,user_id,settings,email_address\r\n7,1,,a@example.com\r\n,2,x,\r\n")
    assert [user_of(item) for item in found] == [
        UserCreated(user_id=1, created_at=7, email_address="a@example.com"),
        UserCreated(user_id=2, settings="x"),
    ]


def test_csv_quoted_cell_holds_line_breaks() -> None:
    """A quoted cell may span lines; its record counts by its first line and keeps all its bytes."""
    found = csv_records(b'user_id,settings\n1,"a\n""b"""\n2,c\n')
    assert [(item.line, user_of(item).settings) for item in found] == [(2, 'a\n"b"'), (4, "c")]
    assert found[0].raw == b'1,"a\n""b"""\n'


def test_csv_unknown_columns_are_ignored_and_named() -> None:
    """A column that is not of the format is passed over, and the reader tells which."""
    reader = CsvRows(Lines(BytesIO(b"\xef\xbb\xbfuser_id , email\n1,a\n")), USER_CREATED)
    assert [user_of(item) for item in reader] == [UserCreated(user_id=1)]
    assert reader.ignored == ("email",)


@pytest.mark.parametrize("header", [b"", b"\n", b"1,a@example.com\n", b"email_address\n", b'"user_id\n'])
def test_csv_without_a_header_is_refused(header: bytes) -> None:
    """A CSV whose first line does not name user_id is no input at all."""
    with pytest.raises(UsageError, match="first line must name"):
        CsvRows(Lines(BytesIO(header)), USER_CREATED)


def test_csv_header_names_each_column_once() -> None:
    """Two columns of one name would leave open which counts."""
    with pytest.raises(UsageError, match="twice"):
        CsvRows(Lines(BytesIO(b"user_id,user_id\n")), USER_CREATED)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b",a", Reason.WRONG_TYPE),
        (b"x,a", Reason.WRONG_TYPE),
        (b"1.0,a", Reason.WRONG_TYPE),
        ("\u0663,a".encode(), Reason.WRONG_TYPE),
        (b"0,a", Reason.OUT_OF_RANGE),
        (b"9" * 900 + b",a", Reason.OUT_OF_RANGE),
        (b"5" + b"0" * 19 + b",a", Reason.OUT_OF_RANGE),
        (b"5,a\0", Reason.BAD_TEXT),
        (b"5,\xff", Reason.NOT_UTF8),
        (b"5", BAD_CSV),
        (b"5,a,b", BAD_CSV),
        (b'5,"a"b', BAD_CSV),
        (b"5," + b"a" * 1000, LINE_TOO_LONG),
    ],
)
def test_bad_csv_row_leaves_its_neighbours_alone(row: bytes, code: str) -> None:
    """A row that is wrong has its line and its code; the rows around it are read."""
    found = csv_records(b"user_id,email_address\n1,x\n" + row + b"\n2,y\n")
    assert only_problem(found) == (3, code)
    assert [item.line for item in found] == [2, 3, 4]
    assert found[1].raw == (None if code == LINE_TOO_LONG else row + b"\n")


@pytest.mark.parametrize("cell", [b"5", b" 5 ", b"+5", b"0005", b"0" * 40 + b"5"])
def test_csv_integers(cell: bytes) -> None:
    """An integer may have blanks, a plus sign and leading zeros, as spreadsheets write them."""
    assert user_of(csv_records(b"user_id\n" + cell + b"\n")[0]).user_id == 5


def test_csv_blank_lines_are_skipped() -> None:
    """Lines without any cell are skipped but counted."""
    assert [item.line for item in csv_records(b"user_id\n\n  \n1\n")] == [4]


def test_csv_unclosed_quote_ends_at_the_limit() -> None:
    """A quote that is never closed costs its own line, after a bounded look, and takes no good row with it."""
    found = csv_records(b'user_id,settings\n1,"a\n' + b"2,b\n" * 5 + b"3,c\n", limit=20)
    assert only_problem(found) == (2, BAD_CSV)
    assert found[0].raw == b'1,"a\n'
    assert [user_of(item).user_id for item in found[1:]] == [2, 2, 2, 2, 2, 3]


def test_csv_quote_open_at_the_end() -> None:
    """A file that ends inside a quoted cell was cut off: its last row is wrong."""
    assert only_problem(csv_records(b'user_id,settings\n1,"a')) == (2, BAD_CSV)


@pytest.mark.parametrize(
    "row",
    [b'5, "b@x.org"', b'5,"b@x.org" ', b'5,b"x', b'5,b"x"', b'"5"x,b', b'5,"b""', b"5,b\rc"],
)
def test_wrong_quoting_is_bad_csv(row: bytes) -> None:
    """F7: a quote stands at both ends of a cell or nowhere in it; nothing is stored with quotes and blanks around it."""
    found = csv_records(b"user_id,email_address\n1,x\n" + row + b"\n2,y\n")
    assert only_problem(found) == (3, BAD_CSV)
    assert [user_of(item).user_id for item in (found[0], found[2])] == [1, 2]
    with pytest.raises(UsageError, match=r"first line must name|quoting"):
        CsvRows(Lines(BytesIO(b'user_id, "email_address"\n1,a\n')), USER_CREATED)


@pytest.mark.parametrize(
    "head",
    [
        b"\n\r\n  \nuser_id,email_address\n",
        b"user_id,email_address,,\n",
        b"Phone Number,user_id,Phone Number,email_address,Phone Number\n",
        b"\xef\xbb\xbf\xef\xbb\xbfuser_id,email_address\n",
        b"sep=;\r\nuser_id;email_address\r\n",
        b"SEP=|\nuser_id|email_address\n",
        b"user_id\temail_address\n",
        b"\xef\xbb\xbf\nuser_id;;email_address;Notes\n",
        b'"user_id";"email_address";"a;b"\r\n',
        b"caf\xe9,user_id,email_address\n",
    ],
)
def test_the_heads_of_real_tools_are_read(head: bytes) -> None:
    """F8: blank lines, unnamed columns, ignored columns of one name, Excel's `sep=`, semicolons, tabs, several marks."""
    reader = CsvRows(Lines(BytesIO(head)), USER_CREATED)
    names = reader._names
    cells = {"user_id": b"7", "email_address": b"a@x.org"}
    row = reader.delimiter.encode().join(cells.get(name, b"z,z" if reader.delimiter != "," else b"z") for name in names)
    reader = CsvRows(Lines(BytesIO(head + row + b"\r\n")), USER_CREATED)
    assert [user_of(item) for item in reader] == [UserCreated(user_id=7, email_address="a@x.org")]


def test_a_delimiter_can_be_said(run: Run, tmp_path: Path) -> None:
    """F8: --delimiter, as a character or the word tab; a letter is none."""
    assert run(b"user_id:settings\n5:a,b\n", "--format", "csv", "--delimiter", ":")[1]["accepted"] == 1
    assert run(b"user_id\tsettings\n5\ta,b\n", "--format", "csv", "--delimiter=tab")[1]["accepted"] == 1
    for wrong in ("a", "", ",,", '"', "\n"):
        with pytest.raises(SystemExit):
            run(b"user_id\n5\n", f"--delimiter={wrong}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(b"user_id\n1\n", mtime=0), "gzip"),
        (b"PK\x03\x04rest", "xlsx"),
        ("user_id\n1\n".encode("utf-16"), "UTF-16"),
        ("user_id\n1\n".encode("utf-16-be"), "UTF-16"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "xls"),
        (b"user_id,settings\r1,a\r2,b\r", "CR alone"),
        (b"SQLite format 3\0", "SQLite"),
        (b"BZh91AY", "bzip2"),
        (b"\x7fELF\x02\x01\x01\0", "binary"),
    ],
)
def test_what_the_bytes_are_is_said(data: bytes, said: str, tmp_path: Path) -> None:
    """F8: by name, with what to do, whatever the file is called."""
    for name in ("users.csv", "users.jsonl", "users"):
        path = tmp_path / name
        path.write_bytes(data)
        with path.open("rb") as stream, pytest.raises(UsageError, match=said):
            records.open_reader(stream, name, "auto", Lines(stream), USER_CREATED, CATALOG)


def test_the_limit_is_the_datas_and_not_the_lines() -> None:
    """F9: a line of 12 MB that spells a message of 2 MB; one just within the limit, with blanks; and one over it."""
    escaped = b'{"user_id":1,"settings":"' + b"\\u0041" * 2_000_000 + b'"}\n'
    assert len(escaped) > MAX_DATA_BYTES
    whole = USER_CREATED.encode(UserCreated(user_id=2, settings="x" * (MAX_DATA_BYTES - 40)))
    assert MAX_DATA_BYTES - 20 < len(whole) <= MAX_DATA_BYTES
    over = b'{"user_id":3,"settings":"' + b"x" * MAX_DATA_BYTES + b'"}\n'
    found = list(JsonLines(Lines(BytesIO(escaped + whole + b" " * 100 + b"\n" + over)), USER_CREATED, CATALOG))
    assert [user_of(item).user_id for item in found[:2]] == [1, 2]
    assert isinstance(found[2].content, records.Problem)
    assert found[2].content.code == Reason.TOO_LARGE


def test_a_quote_that_is_not_closed_takes_no_good_row_with_it() -> None:
    """Also where a later quote closes it: one valid record of many rows would be stored, and they would be missing."""
    rows = b"".join(b"%d,s%d\n" % (number, number) for number in range(2, 50))
    found = csv_records(b'user_id,settings\n1,"a\n' + rows + b'50,b"\n51,c\n')
    assert [item.line for item in found if isinstance(item.content, records.Problem)] == [2, 51]
    assert [user_of(item).user_id for item in found[1:-2]] == list(range(2, 50))
    assert user_of(found[-1]).user_id == 51


def test_a_file_of_mixed_troubles_is_counted_as_by_its_author(run: Run, sink: RecordingSink, tmp_path: Path) -> None:
    """50,000 rows, every seventh with a trouble of a known kind: the counts and the users are those that were written."""
    chance = random.Random(13)
    rows: list[bytes] = []
    users: dict[int, tuple[str | None, str | None]] = {}
    rejected = 0
    bad = [
        b"x,a@x.org,s",
        b'%d, "a@x.org",s',
        b"%d,a@x.org",
        b'%d,"a@x.org,s',
        b"%d,\xff,s",
        b"0,a,s",
        b'%d,a"b,s',
        b"%d,a,s,t",
        b'%d,"a"b,s',
    ]
    for number in range(1, 50_001):
        if number % 7:
            email = chance.choice(["", f"u{number}@x.org", f'"u ""{number}"" @x.org"', f'"u,{number}@x.org"'])
            text = chance.choice(["", "s", '"two\nlines"', '"{""a"": 1,\n""b"": 2}"', "ü"])
            rows.append(f"{number},{email},{text}".encode() + chance.choice([b"\n", b"\r\n"]))
            plain = [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in (email, text)]
            users[number] = (plain[0] or None, plain[1] or None)
        else:
            row = chance.choice(bad)
            rows.append((row % number if b"%d" in row else row) + b"\n" + chance.choice([b"", b"\n"]))
            rejected += 1
    rejects = tmp_path / "bad.csv"
    _, summary, _ = run(
        b"\xef\xbb\xbf\nuser_id,email_address,settings\n" + b"".join(rows), "--format", "csv", f"--rejects={rejects}"
    )
    assert (summary["read"], summary["accepted"], summary["rejected"]) == (50_000, len(users), rejected)
    assert {user.user_id: (user.email_address, user.settings) for user in sink.users} == users
    assert len(rejects.read_bytes().splitlines()) == rejected + 1


def test_rejects_of_an_earlier_load_are_not_overwritten(run: Run, tmp_path: Path) -> None:
    """They may have been corrected meanwhile; an empty file, as mktemp makes it, is taken."""
    rejects = tmp_path / "bad.csv"
    rejects.write_bytes(b"user_id\n5\n")
    code, _, said = run(b'{"user_id":0}\n', f"--rejects={rejects}")
    assert (code, "is not overwritten" in said) == (2, True)
    assert rejects.read_bytes() == b"user_id\n5\n"
    rejects.write_bytes(b"")
    run(b'{"user_id":0}\n', f"--rejects={rejects}")
    assert rejects.read_bytes() == b'{"user_id":0}\n'


@pytest.mark.parametrize(
    ("data", "reader"),
    [(b' \n{"user_id":1}', JsonLines), (b"", JsonLines), (b"[]", JsonLines), (b"\xef\xbb\xbfuser_id\n", CsvRows)],
)
def test_format_is_recognised_by_content(data: bytes, reader: type, tmp_path: Path) -> None:
    """With --format auto and a name that says nothing, the first character that is not blank decides."""
    path = tmp_path / "input"
    path.write_bytes(data)
    with path.open("rb") as stream:
        assert isinstance(records.open_reader(stream, "input", "auto", Lines(stream), USER_CREATED, CATALOG), reader)


def test_format_is_recognised_by_name() -> None:
    """With --format auto, a name that says the format is believed, whatever the first line looks like."""
    stream = BytesIO(b"nonsense\n")
    assert isinstance(records.open_reader(stream, "users.NDJSON", "auto", Lines(stream), USER_CREATED, CATALOG), JsonLines)
    with pytest.raises(UsageError):
        records.open_reader(BytesIO(b"{}"), "users.csv", "auto", Lines(BytesIO(b"{}")), USER_CREATED, CATALOG)


# Loading


def test_load_accepts_everything(run: Run, sink: RecordingSink) -> None:
    """Every line reaches the sink in order, and the summary says so."""
    code, summary, err = run(b'{"user_id":1}\n{"user_id":2,"email_address":"a"}\n')
    assert code == 0
    assert (summary["read"], summary["valid"], summary["accepted"]) == (2, 2, 2)
    assert sink.users == [UserCreated(user_id=1), UserCreated(user_id=2, email_address="a")]
    assert err == ""


def test_load_keeps_what_is_rejected(run: Run, sink: RecordingSink, tmp_path: Path) -> None:
    """Bad lines are told with number and reason, kept byte for byte, and make the exit code 1."""
    rejects = tmp_path / "bad"
    code, summary, err = run(b'{"user_id":0}\r\n{"user_id":1}\nnonsense', "--rejects", str(rejects))
    assert code == 1
    assert (summary["read"], summary["rejected"], summary["accepted"]) == (3, 2, 1)
    assert rejects.read_bytes() == b'{"user_id":0}\r\nnonsense\n'
    assert "line 1: out_of_range: user_id must be" in err
    assert "line 3: not_json:" in err
    assert summary["rejects"] == str(rejects)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("option", ["--rejects", "--accepted"])
def test_a_full_disk_ends_the_reading_and_keeps_the_account(run: Run, sink: RecordingSink, option: str) -> None:
    """What was sent until then is waited for and counted, and the summary says which file is not whole."""
    code, summary, err = run(b'{"user_id":1}\nnonsense\n' + b'{"user_id":2}\n' * 2000, option, "/dev/full")
    assert code == 1
    assert summary["accepted"] == len(sink.users) < 2001
    assert summary["read"] == summary["accepted"] + summary["rejected"]
    assert "cannot write /dev/full: No space left on device" in err
    assert summary["next_line"] == 1
    assert "go on with --start-line 1\n" in err


def test_csv_rejects_can_be_loaded_again(run: Run, sink: RecordingSink, tmp_path: Path) -> None:
    """CSV rejects stand below the header, so the mended file loads as it is."""
    rejects = tmp_path / "bad.csv"
    code, _, _ = run(b"user_id,email_address\n0,a\n1,b\n", "--rejects", str(rejects), name="users.csv")
    assert code == 1
    mended = rejects.read_bytes().replace(b"\n0,", b"\n9,")
    code, summary, _ = run(mended, name="mended.csv")
    assert (code, summary["accepted"]) == (0, 1)
    assert sink.users[-1] == UserCreated(user_id=9, email_address="a")


def test_rejects_are_empty_when_all_is_well(run: Run, tmp_path: Path) -> None:
    """The file is made, and has nothing in it."""
    rejects = tmp_path / "bad"
    assert run(b'{"user_id":1}', "--rejects", str(rejects))[0] == 0
    assert rejects.read_bytes() == b""


def test_load_names_what_the_server_accepted(run: Run, tmp_path: Path) -> None:
    """--accepted gets line, user and message id of every accepted message."""
    accepted = tmp_path / "ok"
    run(b'{"user_id":7}\n{"user_id":0}\n{"user_id":8}\n', "--accepted", str(accepted))
    assert [json.loads(line) for line in accepted.read_text().splitlines()] == [
        {"line": 1, "user_id": 7, "message_id": "m7"},
        {"line": 3, "user_id": 8, "message_id": "m8"},
    ]


def test_load_reports_what_the_server_refused(run: Run, sink: RecordingSink, tmp_path: Path) -> None:
    """A refused message is told with its line and its own error, kept, and does not stop the others."""
    sink.answer = lambda user: RefusedError("no, thanks") if user.user_id == 2 else "m"
    rejects = tmp_path / "bad"
    code, summary, err = run(b'{"user_id":1}\n{"user_id":2}\n{"user_id":3}\n', "--rejects", str(rejects))
    assert code == 1
    assert (summary["accepted"], summary["failed"], summary["unknown"]) == (2, 1, 0)
    assert "line 2: refused: no, thanks" in err
    assert rejects.read_bytes() == b'{"user_id":2}\n'


def test_load_stops_at_what_would_fail_every_message(run: Run, sink: RecordingSink) -> None:
    """A missing topic ends the reading, is explained once, and the summary says where to go on."""
    sink.answer = lambda user: TopicNotFoundError("make the topic") if user.user_id == 2 else "m"
    code, summary, err = run(b"".join(b'{"user_id":%d}\n' % n for n in range(1, 100)))
    assert code == 1
    assert summary["stopped"] == "make the topic"
    assert summary["read"] == summary["next_line"] - 1 < 99
    assert err.count("make the topic") == 1
    assert f"--start-line {summary['next_line']}" in err


def test_no_answer_is_unknown_and_not_failed(run: Run, sink: RecordingSink) -> None:
    """A message that may have been accepted is not counted as lost."""
    sink.answer = lambda user: UnreachableError("silence")
    code, summary, _ = run(b'{"user_id":1}\n')
    assert (code, summary["unknown"], summary["failed"]) == (1, 1, 0)


def test_every_future_is_accounted_for(run: Run, sink: RecordingSink, tmp_path: Path) -> None:
    """Messages that never get an answer are unknown, and kept, once the sink's patience is over."""
    sink.answer = lambda user: None if user.user_id == 2 else "m"
    sink.patience = 0.01
    rejects = tmp_path / "bad"
    code, summary, err = run(b'{"user_id":1}\n{"user_id":2}\n', "--rejects", str(rejects))
    assert (code, summary["accepted"], summary["unknown"]) == (1, 1, 1)
    assert "line 2: not_confirmed" in err
    assert rejects.read_bytes() == b'{"user_id":2}\n'


def test_start_line_passes_over_what_was_read(run: Run, sink: RecordingSink) -> None:
    """--start-line goes on where a run stopped; a CSV keeps its header."""
    _, summary, _ = run(b"user_id\n1\n2\n3\n", "--start-line", "3", name="users.csv")
    assert [user.user_id for user in sink.users] == [2, 3]
    assert summary["read"] == 2


def test_dry_run_sends_nothing(run: Run, sink: RecordingSink, tmp_path: Path) -> None:
    """--dry-run checks every line, needs no topic, and still writes the rejects."""
    rejects = tmp_path / "bad"
    code, summary, _ = run(b'{"user_id":1}\n{}\n', "--dry-run", "--rejects", str(rejects))
    assert (code, summary["dry_run"]) == (1, True)
    assert (summary["valid"], summary["rejected"], summary["accepted"]) == (1, 1, 0)
    assert sink.users == []
    assert rejects.read_bytes() == b"{}\n"


def test_only_the_first_problems_are_printed(run: Run) -> None:
    """After twenty problems the rest are only counted."""
    _, summary, err = run(b"{}\n" * (MAX_PROBLEMS_SHOWN + 3))
    assert summary["rejected"] == MAX_PROBLEMS_SHOWN + 3
    assert err.count("missing_field") == MAX_PROBLEMS_SHOWN
    assert "and 3 more" in err


def test_too_long_lines_are_counted_as_omitted(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line too long to keep is rejected, and the summary says that the rejects lack it."""
    monkeypatch.setattr(Lines.__init__, "__defaults__", (100,))
    rejects = tmp_path / "bad"
    code, summary, _ = run(b"x" * 200 + b"\n{}\n", "--rejects", str(rejects))
    assert (code, summary["rejected"], summary["omitted"]) == (1, 2, 1)
    assert rejects.read_bytes() == b"{}\n"


def test_summary_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json the summary is one line of text."""
    path = tmp_path / "users.csv"
    path.write_text("user_id\n1\n0\n")
    assert cli.main(["load", str(path), "--dry-run"], {}) == 1
    assert capsys.readouterr().out.endswith("1 valid, 1 rejected\n")


def test_ignored_columns_are_told(run: Run) -> None:
    """A mistyped column name does not lose its data in silence."""
    assert "columns ignored: email" in run(b"user_id,email\n1,a\n", name="users.csv")[2]


def test_in_flight_is_bounded() -> None:
    """No more messages are open than the sink holds, although it never answers on its own."""
    sink = RecordingSink(capacity=3)
    held: list[tuple[Future[str], str]] = []
    publish = sink.publish

    def slow(message: Message) -> Future[str]:
        future = publish(message)
        held.append((future, "m"))
        if len(held) == 3:
            for open_future, answer in held:
                settle(open_future, answer)
            held.clear()
        return future

    sink.answer = lambda user: None
    sink.publish = slow  # type: ignore[method-assign]  # a sink that answers in threes
    report = SilentReport()
    summary = Loader(sink, report, Interrupt()).run(
        JsonLines(Lines(BytesIO(b"".join(b'{"user_id":%d}\n' % n for n in range(1, 31)))), USER_CREATED, CATALOG)
    )
    assert (summary.accepted, sink.most_open) == (30, 3)


def test_a_bug_in_a_sink_is_not_swallowed() -> None:
    """An error that is no DeliveryError is a bug, and surfaces as itself."""
    sink = RecordingSink()

    def broken(message: Message) -> Future[str]:
        future: Future[str] = Future()
        future.set_exception(ZeroDivisionError())
        return future

    sink.publish = broken  # type: ignore[method-assign]  # the bug
    lines = JsonLines(Lines(BytesIO(b'{"user_id":1}\n')), USER_CREATED, CATALOG)
    with pytest.raises(ZeroDivisionError):
        Loader(sink, SilentReport(), Interrupt()).run(lines)


# Ctrl-C


def interrupt_at(number: int) -> Answer:
    """Return an answer that presses Ctrl-C while the message with this user id is being sent."""

    def answer(user: UserCreated) -> str | None:
        if user.user_id == number:
            os.kill(os.getpid(), signal.SIGINT)
        return "m"

    return answer


def test_ctrl_c_stops_reading_and_keeps_the_account(run: Run, sink: RecordingSink) -> None:
    """Ctrl-C while a message is sent: that message is still accounted for, no further one is read."""
    sink.answer = interrupt_at(3)
    code, summary, err = run(b"".join(b'{"user_id":%d}\n' % n for n in range(1, 10)))
    assert code == 130
    assert (summary["read"], summary["accepted"], summary["next_line"]) == (3, 3, 4)
    assert summary["interrupted"] is True
    assert "--start-line 4" in err


def test_ctrl_c_waits_for_a_bounded_time(run: Run, sink: RecordingSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C an answer that does not come is waited for briefly, then the message is unknown."""
    monkeypatch.setattr(load, "INTERRUPT_SECONDS", 0.01)
    interrupt = interrupt_at(2)
    sink.answer = lambda user: None if user.user_id == 1 else interrupt(user)
    sink.patience = 600.0
    code, summary, _ = run(b'{"user_id":1}\n{"user_id":2}\n{"user_id":3}\n')
    assert (code, summary["accepted"], summary["unknown"]) == (130, 1, 1)
    assert sink.closed_after[0] == 0.0


def test_the_former_handler_is_put_back(run: Run, sink: RecordingSink) -> None:
    """Ctrl-C behaves as before once the load is over."""
    before = signal.getsignal(signal.SIGINT)
    run(b'{"user_id":1}\n')
    assert signal.getsignal(signal.SIGINT) is before


# Usage


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["load", "no-such-file"], "cannot read no-such-file"),
        (["create", "--user-id", "5"], "set TOPIC"),
        (["create", "--user-id", "5", "--topic", "users"], "GOOGLE_CLOUD_PROJECT"),
        (["create", "--user-id", "5", "--topic", "a/b"], "is no topic"),
        (["create", "--user-id", "5", "--push-to", "ftp://x"], "must be an address"),
        (["create", "--user-id", "0", "--topic", "users"], "--user-id: must be a whole number from 1 to"),
    ],
)
def test_wrong_usage(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage exits 2 and says what to do; nothing is sent."""
    try:
        code: int | str | None = cli.main(arguments, {})
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--in-flight=0", "--in-flight=x", "--give-up-after=0", "--give-up-after=nan"])
def test_limits_are_checked(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit outside its range is a usage error that names the range."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["load", "-", option], {})
    assert caught.value.code == 2
    assert "must be" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--rejects"], ["--accepted"]])
def test_the_input_is_never_overwritten(run: Run, tmp_path: Path, options: list[str]) -> None:
    """Writing the rejects over the file being read would destroy it: refused."""
    code, _, err = run(b'{"user_id":1}\n', *options, str(tmp_path / "users.jsonl"))
    assert (code, "is read" in err) == (2, True)
    assert (tmp_path / "users.jsonl").read_bytes() == b'{"user_id":1}\n'


def test_two_outputs_are_two_files(run: Run, tmp_path: Path) -> None:
    """Rejects and accepted in one file would be neither."""
    both = str(tmp_path / "both")
    assert run(b"", "--rejects", both, "--accepted", both)[0] == 2


def test_create_prints_the_message_id(
    sink: RecordingSink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`create` publishes one user with all its fields and prints what the server called the message."""
    monkeypatch.setattr(cli, "open_sink", lambda options, environment, traced: sink)
    arguments = ["create", "--user-id", "5", "--email", "a@example.com", "--settings", "x", "--created-at", "7", "--json"]
    assert cli.main(arguments, {}) == 0
    assert json.loads(capsys.readouterr().out) == {"user_id": 5, "message_id": "m5"}
    assert sink.users == [UserCreated(user_id=5, email_address="a@example.com", settings="x", created_at=7)]


def test_create_that_is_not_accepted_exits_1(
    sink: RecordingSink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`create` says why the server did not take the message."""
    sink.answer = lambda user: RefusedError("no, thanks")
    monkeypatch.setattr(cli, "open_sink", lambda options, environment, traced: sink)
    assert cli.main(["create", "--user-id", "5"], {}) == 1
    assert "no, thanks" in capsys.readouterr().err


def test_topic_names() -> None:
    """A short id is completed with the project; a full name is taken as it is."""
    assert topic_path("users", "p") == "projects/p/topics/users"
    assert topic_path("projects/q/topics/users", "p") == "projects/q/topics/users"


def test_help_names_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help lists the environment variables it reads."""
    for arguments in (["--help"], ["create", "--help"], ["load", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(arguments, {})
        printed = capsys.readouterr().out
        assert all(name in printed for name in ENVIRONMENT)


def test_message_errors_of_a_sink_reject_the_line(run: Run, sink: RecordingSink) -> None:
    """A message that grows too large when encoded is rejected like any other bad line."""

    def too_large(message: Message) -> Future[str]:
        raise MessageError(Reason.TOO_LARGE, "data must be smaller")

    sink.publish = too_large  # type: ignore[method-assign]  # only publish can tell
    code, summary, err = run(b'{"user_id":1}\n')
    assert (code, summary["rejected"], summary["valid"]) == (1, 1, 0)
    assert "line 1: too_large" in err
