"""The bucket: the objects of one store by their names, as the whole worker sees them.

replica/bucket.py implements this with Google's client. A test's stand-in overrides the requests that its subject makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from google.auth.credentials import Credentials


class StoredObject(msgspec.Struct, frozen=True):
    """An object as a listing shows it. `created` is by the bucket's clock."""

    name: str
    bytes: int
    created: datetime
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """A generation in a bucket; `access` finds the endpoint and Google's credentials, and may block."""

    bucket: str
    path: str
    access: Callable[[], tuple[str, Credentials]]


class Objects:
    """Objects by name under the store's prefix. Timeouts are in seconds, and for each request.

    Every request may raise `StoreUnavailable`, after which it is not known whether it was carried out, or `StoreDenied`.
    """

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """The bytes and the generation of an object, or None when there is no such object (or no such bucket)."""
        raise NotImplementedError

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """Write an object if it is at `if_generation` (0: does not exist); its new generation.

        Raises:
            Mismatch: It is at another generation, or it exists.
            StoreMissing: There is no such bucket.
        """
        raise NotImplementedError

    async def delete(self, name: str, *, timeout: float) -> None:
        """Delete an object; one that is not there is fine."""
        raise NotImplementedError

    async def updated(self, name: str, *, timeout: float) -> datetime | None:
        """When an object was last written, by the bucket's clock; None when there is no such object."""
        raise NotImplementedError

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """The objects whose names begin with `name_prefix`, in order; `timeout` is for each page of a thousand."""
        raise NotImplementedError

    async def names(self, name_prefix: str, *, timeout: float) -> list[str]:
        """Their names."""
        return [each.name for each in await self.objects(name_prefix, timeout=timeout)]

    async def folders(self, name_prefix: str, *, timeout: float) -> list[str]:
        """The folder names right below `name_prefix`, in order; `timeout` is for each page."""
        raise NotImplementedError

    async def fetch(
        self,
        names: Sequence[str],
        name_prefix: str,
        directory: Path,
        *,
        timeout: float,
        check: Callable[[Path], None],
    ) -> None:
        """Copy objects into `directory`, many at a time.

        Args:
            names: Which, all below `name_prefix`.
            name_prefix: How their names begin.
            directory: Where the rest of each name is its path.
            timeout: For each request, in seconds.
            check: Called with each file, on the thread that has fetched it.

        Raises:
            StoreMissing: One of them vanished while they were copied. Otherwise what `check` raises.
        """
        raise NotImplementedError

    def patient(self, seconds: float) -> Self:
        """The same bucket, whose reads are repeated for `seconds` from now while they get no answer."""
        raise NotImplementedError

    def place(self, path: str) -> Place:
        """Where the generation at `path` is: for its gate."""
        raise NotImplementedError
