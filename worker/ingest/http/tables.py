"""Rows over HTTP: one by its key, or a page of them in the keys' order; of tables whose events allow it.

GET /tables/<table>/<key>             the row
GET /tables/<table>?after=&limit=     a page: {"rows": [...], "after": the key to go on behind, or null}
GET /users/<id>                       the same as /tables/users/<id>
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.responses import Response

from worker.errors import BadQuery, NotFound
from worker.events.catalog import Catalog, Table
from worker.events.declaration import MAX_INTEGER, MAX_KEY_BYTES
from worker.ingest.tables import Tables

T = TypeVar("T")

ROOT: Final = "/tables/"
_USERS: Final = "/users/"
_PAGE_MAX: Final = 500
"""Most rows in one answer."""
_PAGE_BYTES: Final = 1_000_000
"""An answer ends with the row that reaches this size; a row is 10 MB at most (INV-7)."""
_PAGE: Final = 100


async def answer(path: str, query: Mapping[str, str], catalog: Catalog, readers: Tables) -> Response:
    """Answer a request to a path below ROOT or /users/; `path` is as it was sent, with its escapes.

    Raises:
        NotFound: There is no such row, or no such table that can be read.
        BadQuery: The key or a parameter cannot be one.
        Refused: This instance has no database now.
    """
    below = path.removeprefix("/") if path.startswith(_USERS) else path.removeprefix(ROOT)
    name, slash, text = below.partition("/")
    table = catalog.tables.get(unquote(name))
    if table is None or not table.readable:
        names = [table.name for table in catalog.tables.values() if table.readable]
        raise NotFound(f"no such table can be read; there {'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}")
    if (slash and text) or path.startswith(_USERS):
        return _json(await _row(table, _key(table, unquote(text)), readers))
    return _json(await _rows(table, query, readers))


async def _row(table: Table, key: int | str, readers: Tables) -> dict[str, Any]:
    query = table.model.select().where(getattr(table.model, table.key) == key).dicts()
    row: dict[str, Any] | None = await readers.read(lambda connection: query.bind(connection).first())
    if row is None or (table.gone is not None and row[table.gone]):
        raise NotFound("no such user" if table.name == "users" else f"no such row of {table.name}")
    return row


async def _rows(table: Table, query: Mapping[str, str], readers: Tables) -> dict[str, Any]:
    limit = query.get("limit", str(_PAGE))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5) or not 1 <= int(limit) <= _PAGE_MAX:
        raise BadQuery(f"limit must be a whole number from 1 to {_PAGE_MAX}")
    key: Any = getattr(table.model, table.key)
    select = table.model.select().order_by(key).limit(int(limit) + 1).dicts()
    if table.gone is not None:
        gone: Any = getattr(table.model, table.gone)
        select = select.where(gone.is_null() | (gone == 0))
    if (after := query.get("after")) is not None:
        select = select.where(key > _key(table, after))
    rows, whole = await readers.read(lambda connection: _page(select.bind(connection).iterator(), int(limit)))
    return {"rows": rows, "after": rows[-1][table.key] if rows and not whole else None}


def _page(rows: Iterator[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """At most `limit` rows, and about _PAGE_BYTES; whether they were all of them."""
    page: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        if len(page) == limit or size > _PAGE_BYTES:
            return page, False
        page.append(row)
        size += len(msgspec.json.encode(row))
    return page, True


def _key(table: Table, text: str) -> int | str:
    if table.key_is_text:
        if not 0 < len(text.encode(errors="replace")) <= MAX_KEY_BYTES or "\0" in text:
            raise BadQuery(f"{table.key} must be a text of 1 to {MAX_KEY_BYTES} bytes")
        return text
    digits = text.removeprefix("-")
    number = digits.isascii() and digits.isdecimal() and len(digits) <= 19
    if not number or not -MAX_INTEGER - 1 <= int(text) <= MAX_INTEGER:
        raise BadQuery(f"{table.key} must be a whole number, at most 2^63-1")
    return int(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
