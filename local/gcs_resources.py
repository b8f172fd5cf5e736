"""The JSON shapes of buckets and objects, and the headers of a download.

Sources: the JSON API reference pages "Objects", "Objects: list" and "Buckets"; "HTTP headers" of the XML API.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import msgspec

from local.gcs_errors import Headers, condition_not_met, invalid, not_modified

# A bucket's metadata can't be changed here.
BUCKET_METAGENERATION = 1


class Fields(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """What a client may say about an object, and change later."""

    content_type: str | None = None
    content_encoding: str | None = None
    content_disposition: str | None = None
    content_language: str | None = None
    cache_control: str | None = None
    custom_time: str | None = None
    metadata: dict[str, str] | None = None

    def patched(self, changes: Mapping[str, Any]) -> Fields:
        """Applies "Objects: patch": absent keeps, null removes, metadata is merged key by key."""
        merged = msgspec.to_builtins(self) | dict(changes)
        if isinstance(changes.get("metadata"), Mapping):
            metadata = (self.metadata or {}) | changes["metadata"]
            merged["metadata"] = {key: value for key, value in metadata.items() if value is not None}
        return fields_of(merged)


class Checks(msgspec.Struct, frozen=True):
    """Checksums the client sent for the server to verify, in base64."""

    md5: str | None = None
    crc32c: str | None = None

    def with_header(self, value: str) -> Checks:
        """Adds those of an `x-goog-hash` header (`crc32c=...,md5=...`)."""
        pairs = dict(part.strip().split("=", 1) for part in value.split(",") if "=" in part)
        return Checks(pairs.get("md5", self.md5), pairs.get("crc32c", self.crc32c))


class Conditions(msgspec.Struct, frozen=True, omit_defaults=True):
    """The four preconditions on generations.

    A missing object has generation and metageneration 0, so that `ifGenerationMatch=0` reads "must not exist".
    """

    generation_match: int | None = None
    generation_not_match: int | None = None
    metageneration_match: int | None = None
    metageneration_not_match: int | None = None

    @classmethod
    def of(cls, source: Mapping[str, str]) -> Conditions:
        """Reads them from query parameters.

        Raises:
            GcsError: A value is no number.
        """
        return cls(
            integer(source, "ifGenerationMatch"),
            integer(source, "ifGenerationNotMatch"),
            integer(source, "ifMetagenerationMatch"),
            integer(source, "ifMetagenerationNotMatch"),
        )

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> Conditions:
        """Reads the two that the XML API knows from headers."""
        return cls(
            generation_match=integer(headers, "x-goog-if-generation-match"),
            metageneration_match=integer(headers, "x-goog-if-metageneration-match"),
        )

    def check(self, generation: int, metageneration: int) -> None:
        """Passes if all of them hold for the live object (0, 0 for none).

        Raises:
            GcsError: 412 for a `Match`, 304 for a `NotMatch`; the latter fails on a missing object whatever its value.
        """
        if self.generation_match not in {None, generation}:
            raise condition_not_met()
        if self.metageneration_match not in {None, metageneration}:
            raise condition_not_met()
        if self.generation_not_match is not None and generation in {0, self.generation_not_match}:
            raise not_modified()
        if self.metageneration_not_match is not None and metageneration in {0, self.metageneration_not_match}:
            raise not_modified()


class StoredObject(msgspec.Struct, frozen=True):
    """One live object: everything but its bytes, which are in the file `body`."""

    bucket: str
    name: str
    generation: int
    metageneration: int
    size: int
    body: str
    md5: str
    crc32c: str
    created: str
    updated: str
    fields: Fields

    @property
    def etag(self) -> str:
        """Changes with the content and with the metadata."""
        return base64.b64encode(f"{self.generation}/{self.metageneration}".encode()).decode()


def integer(source: Mapping[str, str], name: str) -> int | None:
    """A number from query parameters or headers.

    Raises:
        GcsError: It is there and no number.
    """
    text = source.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise invalid(f"Invalid value for {name}: {text!r}")
    return int(text)


def fields_of(document: object) -> Fields:
    """Validates an object resource sent by a client.

    Raises:
        GcsError: A field has the wrong type.
    """
    try:
        return msgspec.convert(document, Fields)
    except msgspec.ValidationError as error:
        raise invalid(f"Invalid object resource: {error}") from None


def now_text() -> str:
    """The time now as the API writes it: RFC 3339, milliseconds, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def object_resource(stored: StoredObject, base_url: str) -> dict[str, Any]:
    """The "Objects" resource."""
    path = f"b/{stored.bucket}/o/{quote(stored.name, safe='')}"
    resource: dict[str, Any] = {
        "kind": "storage#object",
        "id": f"{stored.bucket}/{stored.name}/{stored.generation}",
        "selfLink": f"{base_url}/storage/v1/{path}",
        "mediaLink": f"{base_url}/download/storage/v1/{path}?generation={stored.generation}&alt=media",
        "name": stored.name,
        "bucket": stored.bucket,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "storageClass": "STANDARD",
        "size": str(stored.size),
        "md5Hash": stored.md5,
        "crc32c": stored.crc32c,
        "etag": stored.etag,
        "timeCreated": stored.created,
        "updated": stored.updated,
        "timeStorageClassUpdated": stored.created,
        "timeFinalized": stored.created,
    }
    resource.update(msgspec.to_builtins(stored.fields))
    return resource


def bucket_resource(name: str, created: str, base_url: str) -> dict[str, Any]:
    """The "Buckets" resource."""
    return {
        "kind": "storage#bucket",
        "id": name,
        "selfLink": f"{base_url}/storage/v1/b/{name}",
        "projectNumber": "0",
        "name": name,
        "timeCreated": created,
        "updated": created,
        "metageneration": str(BUCKET_METAGENERATION),
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "enforced"},
        "location": "US",
        "locationType": "multi-region",
        "storageClass": "STANDARD",
        "etag": "CAE=",
    }


def download_headers(stored: StoredObject) -> Headers:
    """What comes with an object's bytes.

    Two `x-goog-hash` lines, as the service sends them: Go's client looks for the checksum at the start of a line.
    """
    fields = stored.fields
    updated = datetime.fromisoformat(stored.updated)
    headers = [
        ("content-type", fields.content_type or "application/octet-stream"),
        ("etag", f'"{stored.etag}"'),
        ("last-modified", format_datetime(updated, usegmt=True)),
        ("accept-ranges", "bytes"),
        ("x-goog-generation", str(stored.generation)),
        ("x-goog-metageneration", str(stored.metageneration)),
        ("x-goog-hash", f"crc32c={stored.crc32c}"),
        ("x-goog-hash", f"md5={stored.md5}"),
        ("x-goog-storage-class", "STANDARD"),
        ("x-goog-stored-content-length", str(stored.size)),
        ("x-goog-stored-content-encoding", fields.content_encoding or "identity"),
        ("cache-control", fields.cache_control or "private, max-age=0"),
    ]
    optional = {
        "content-encoding": fields.content_encoding,
        "content-disposition": fields.content_disposition,
        "content-language": fields.content_language,
    }
    headers += [(key, value) for key, value in optional.items() if value]
    for key, value in (fields.metadata or {}).items():
        headers.append((f"x-goog-meta-{quote(key)}", quote(value, safe=" !#$&'()*+,/:;=?@[]<>\"{}|^`")))
    return [(key, value if value.isprintable() and value.isascii() else quote(value)) for key, value in headers]
