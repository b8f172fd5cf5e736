"""Where a generation is in the bucket, and what its Litestream calls that place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

BUCKET: Final = "bucket"
PATH: Final = "replica"
"""The bucket and the path that the child is given: the gate puts the real ones in their place."""


class Credentials(Protocol):
    """Google's credentials, as the gate uses them."""

    @property
    def valid(self) -> bool: ...  # noqa: D102  # whether the token lasts for a while
    def refresh(self, request: Any) -> None: ...  # noqa: D102  # fetch a token; blocks
    def apply(self, headers: dict[str, str]) -> None: ...  # noqa: D102  # put the token into the headers


@dataclass(frozen=True, slots=True)
class Place:
    """A generation in a bucket; `access` finds the endpoint and the credentials, and may block."""

    bucket: str
    path: str
    access: Callable[[], tuple[str, Credentials]]
