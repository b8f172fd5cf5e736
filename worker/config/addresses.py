"""Where data lives, as settings name it: a store in a bucket, a PostgreSQL database, the file of the working copy."""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from publisher import values

PREFIX_MAX: Final = 512
"""Longest prefix, in characters: an object's name has at most 1,024 bytes (documentation, "Quotas and limits")."""
NAME_MAX_BYTES: Final = 200
"""Longest name of the database's file: those beside it are longer, and a name has at most 255 bytes."""

_URL: Final = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/([^/]+(?:/[^/]+)*)/?", re.ASCII)
_PART: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_SIGNS_OF_URLS: Final = "?#%"
"""Litestream 0.5.17 puts the file's name into a URL as it is, and SQLite opens another file. A folder it is given by another
name (litestream.plain); SQLite names the WAL for the file, so there is none for that."""


def store_place(url: str) -> tuple[str, str]:
    """The bucket and the prefix of a REPLICA_URL.

    Raises:
        Wrong: It is no store's place, or is one that different readers would take for different ones.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise values.Wrong("must be gs://BUCKET/PREFIX, for example gs://acme-users/prod")
    parts = found[2].split("/")
    if any(not _PART.fullmatch(part) or part in (".", "..") for part in parts) or len(found[2]) > PREFIX_MAX:
        raise values.Wrong(
            "must be gs://BUCKET/PREFIX, for example gs://acme-users/prod: the prefix has letters, digits, '.', '_', '-', "
            f"and '/' between its parts, and at most {PREFIX_MAX} characters; no part is '.' or '..'"
        )
    return found[1], found[2]


def database_address(text: str) -> str:
    """The address of a PostgreSQL database, as DATABASE_URL gives it.

    Raises:
        Wrong: It is none, or names no database.
    """
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise values.Wrong(f"must be postgresql://USER@HOST/DATABASE ({error})") from None
    if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/") or any(map(str.isspace, text)):
        raise values.Wrong("must be postgresql://USER@HOST/DATABASE")
    return text


def without_secrets(address: str) -> str:
    """The address of a database as it may be shown: its hosts, or its socket's folder, and its name."""
    parts = urlsplit(address)
    hosts = parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "")
    return f"postgresql://{hosts}/{parts.path.strip('/')}"


def store_name(replica_url: str, database_url: str) -> str:
    """The store, as a command and the service each know it. A database's host may have another name for each of them."""
    return f"postgresql:///{urlsplit(database_url).path.strip('/')}" if database_url else replica_url.rstrip("/")


def database_file(text: str) -> Path:
    """The path of the working copy.

    Raises:
        Wrong: It can be no file here.
    """
    file = values.path(text)
    if len(os.fsencode(file.name)) > NAME_MAX_BYTES:
        raise values.Wrong(f"must be a file whose name has at most {NAME_MAX_BYTES} bytes")
    if any(sign in file.name for sign in _SIGNS_OF_URLS):
        raise values.Wrong("must be a file without '?', '#' and '%' in its name: Litestream would open another file")
    try:
        folder = file.is_dir()
    except OSError as error:
        raise values.Wrong(f"must be a path that can be opened ({error.strerror})") from None
    if folder:
        raise values.Wrong("must be a file, not a folder")
    return file
