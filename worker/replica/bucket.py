"""Cloud Storage, and the only file that knows it: objects under one gs://BUCKET/PREFIX, read and swapped.

The client's own retries are off: a retried write whose first answer was lost meets 412 while we hold the object, so the
caller must see each doubt itself and re-read. Google's client blocks, so each call runs on a small pool of threads.
STORAGE_EMULATOR_HOST is honoured by the client, without credentials.
"""

import asyncio
import copy
import functools
import logging
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import certifi
import google.auth.exceptions
import google_crc32c
import requests
import requests.adapters
import urllib3
from google.api_core import exceptions as api
from google.auth.transport.urllib3 import AuthorizedHttp
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from worker.bucket import Objects, Place, StoredObject
from worker.errors import Mismatch, StoreDenied, StoreMissing, StoreThrottled, StoreUnavailable

_THREADS: Final = 4
"""Requests at once: a renewal, a lease read, and room for one of each that hangs until its timeout."""

_FETCH_THREADS: Final = 24
"""Downloads at once in a restore: 1,000 small objects at 40 ms each take 2 to 3 s instead of 42."""
COMMAND_PATIENCE_SECONDS: Final = 30.0
"""How long an operator's command repeats a read. A restore has RESTORE_TIMEOUT_SECONDS of its own."""
_TIMEOUT_SLACK_SECONDS: Final = 0.5
_READ_PAUSE_SECONDS: Final = 0.1
_READ_PAUSE_MAX_SECONDS: Final = 2.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Bucket(Objects):
    """The objects of gs://BUCKET/PREFIX, by Google's client; see `Objects` for what each request does."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._url = f"gs://{bucket}/{prefix}"
        self._name, self._prefix = bucket, prefix
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="gcs")
        self._reader: Any = None  # made with the client
        self._until = 0.0  # until when reads are repeated, on the monotonic clock
        self._client: Any = None  # made on first use, on a pool thread: finding credentials may ask the network

    def __str__(self) -> str:
        return self._url

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """See `Objects.read`."""

        def download() -> tuple[bytes, int] | None:
            # Not by the client's own download: each confirmation is one such read, and that takes three times the CPU.
            path = f"/storage/v1/b/{self._name}/o/{quote(f'{self._prefix}/{name}', safe='')}?alt=media"
            url = self._client_on_thread().api_endpoint + path
            answer = self._reader.urlopen("GET", url, timeout=timeout, retries=False)
            if answer.status == HTTPStatus.NOT_FOUND:
                return None
            if answer.status != HTTPStatus.OK:
                said = answer.data.decode(errors="replace").strip()
                raise api.from_http_status(answer.status, said)  # type: ignore[no-untyped-call]
            checksum = b64encode(google_crc32c.value(answer.data).to_bytes(4)).decode()
            generation = answer.headers.get("x-goog-generation", "")
            if f"crc32c={checksum}" not in answer.headers.get("x-goog-hash", "") or not generation.isdecimal():
                raise DataCorruption(answer, "the checksum or the generation is missing or wrong")
            return answer.data, int(generation)

        return await self._reading(download, f"read {name}", timeout)

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """See `Objects.write`."""

        def upload() -> int:
            blob = self._bucket().blob(f"{self._prefix}/{name}")
            blob.cache_control = "no-store"
            blob.upload_from_string(
                data,
                content_type="application/json",
                if_generation_match=if_generation,
                timeout=timeout,
                retry=None,
            )
            return int(blob.generation)

        return await self._run(upload, f"write {name}", timeout)

    def patient(self, seconds: float) -> "Bucket":
        """See `Objects.patient`."""
        patient = copy.copy(self)
        patient._until = time.monotonic() + seconds
        return patient

    def place(self, path: str) -> Place:
        """See `Objects.place`."""
        return Place(self._name, f"{self._prefix}/{path}", self._access)

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """See `Objects.objects`."""
        found = []
        async for page in self._pages(name_prefix, None, timeout):
            found += [
                StoredObject(blob.name.removeprefix(f"{self._prefix}/"), blob.size, blob.time_created, blob.metadata or {})
                for blob in page[0]
            ]
        return found

    async def folders(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `Objects.folders`."""
        found: set[str] = set()
        async for page in self._pages(name_prefix, "/", timeout):
            found |= page[1]
        return sorted(folder.removeprefix(f"{self._prefix}/{name_prefix}").rstrip("/") for folder in found)

    async def fetch(
        self,
        names: Sequence[str],
        name_prefix: str,
        directory: Path,
        *,
        timeout: float,
        check: Callable[[Path], None] = lambda file: None,
    ) -> None:
        """See `Objects.fetch`."""

        def download(name: str) -> None:
            file = directory / name.removeprefix(name_prefix)
            blob = self._bucket().blob(f"{self._prefix}/{name}")
            # The client goes on where a download broke off, for as long as there is patience.
            left = self._until - time.monotonic()
            retry = DEFAULT_RETRY.with_timeout(left) if left > 0 else None
            blob.download_to_filename(str(file), timeout=timeout, retry=retry)
            check(file)

        async def one_lane(left: Iterator[str], threads: ThreadPoolExecutor) -> None:
            for name in left:
                await self._reading(functools.partial(download, name), f"read {name}", timeout, threads)

        for name in names:  # not by the downloads: one that outlives a cancellation must not make a removed folder again
            (directory / name.removeprefix(name_prefix)).parent.mkdir(parents=True, exist_ok=True)
        left = iter(names)
        threads = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(min(_FETCH_THREADS, len(names))):
                    lanes.create_task(one_lane(left, threads))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed  # each lane ends at its first error, and one is enough
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def delete(self, name: str, *, timeout: float) -> None:
        """See `Objects.delete`."""

        def remove() -> None:
            try:
                self._bucket().blob(f"{self._prefix}/{name}").delete(timeout=timeout, retry=None)
            except api.NotFound:
                return

        await self._run(remove, f"delete {name}", timeout)

    async def updated(self, name: str, *, timeout: float) -> datetime | None:
        """See `Objects.updated`."""

        def stat() -> datetime | None:
            blob = self._bucket().get_blob(f"{self._prefix}/{name}", timeout=timeout, retry=None)
            return None if blob is None else blob.updated

        return await self._reading(stat, f"look at {name}", timeout)

    def close(self) -> None:
        """Let the threads end; a request under way ends by its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _pages(
        self, name_prefix: str, delimiter: str | None, timeout: float
    ) -> AsyncIterator[tuple[list[Any], set[str]]]:
        """The pages of a listing: the objects and the folders of each."""
        token: str | None = None

        def page() -> tuple[list[Any], set[str], str | None]:
            found = self._client_on_thread().list_blobs(
                self._name,
                prefix=f"{self._prefix}/{name_prefix}",
                delimiter=delimiter,
                page_token=token,
                timeout=timeout,
                retry=None,
            )
            blobs = list(next(found.pages, ()))
            return blobs, set(found.prefixes), found.next_page_token

        while True:
            blobs, folders, token = await self._reading(page, f"list {name_prefix}", timeout)
            yield blobs, folders
            if not token:
                return

    def _access(self) -> tuple[str, Any]:
        client = self._client_on_thread()
        return client.api_endpoint, client._credentials

    def _bucket(self) -> Any:
        return self._client_on_thread().bucket(self._name)

    def _client_on_thread(self) -> Any:
        if self._client is None:
            # Two threads may both come here; either client will do. The project is not used by object requests.
            client = storage.Client(project="unused")
            pool = urllib3.PoolManager(maxsize=_THREADS, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where())
            self._reader = AuthorizedHttp(client._credentials, http=pool)  # type: ignore[no-untyped-call]
            for scheme in ("https://", "http://"):  # by default ten connections are kept; each fetching thread uses one
                client._http.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_THREADS + _FETCH_THREADS))
            # For traces that are off here, the client asks for the bucket itself after each 404: once a second, as long
            # as there is no successor.json, and billed. `getattr` and truth are all it asks of this attribute.
            client._bucket_metadata_cache = None
            self._client = client
        return self._client

    async def _reading(
        self, request: Callable[[], T], what: str, timeout: float, threads: ThreadPoolExecutor | None = None
    ) -> T:
        """Make a request that changes nothing, again while it gets no answer and there is patience."""
        pause = _READ_PAUSE_SECONDS
        while True:
            try:
                return await self._run(request, what, timeout, threads)
            except StoreUnavailable as error:
                if time.monotonic() + pause > self._until:
                    raise
                log.warning("asking again: %s", error, extra={"action": "bucket.retry"})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _READ_PAUSE_MAX_SECONDS)

    async def _run(
        self, request: Callable[[], T], what: str, timeout: float, threads: ThreadPoolExecutor | None = None
    ) -> T:
        loop = asyncio.get_running_loop()
        try:
            # The client's own timeout is for each piece of an answer; this one is for the whole of it.
            async with asyncio.timeout(timeout + _TIMEOUT_SLACK_SECONDS):
                return await loop.run_in_executor(
                    threads or self._threads, functools.partial(self._translated, request, what)
                )
        except TimeoutError:
            raise StoreUnavailable(f"{what} at {self._url}: no whole answer within {timeout:g} s") from None

    def _translated(self, request: Callable[[], T], what: str) -> T:
        with _translate(f"{what} at {self._url}"):
            return request()


@contextmanager
def opened(bucket: str, prefix: str) -> Iterator[Bucket]:
    """The bucket of a command, closed after the block."""
    store = Bucket(bucket, prefix)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _translate(what: str) -> Iterator[None]:
    try:
        yield
    except api.PreconditionFailed as error:
        raise Mismatch(f"{what}: the object has changed since it was read") from error
    except api.NotFound as error:
        raise StoreMissing(f"{what}: no such bucket; create it, or correct REPLICA_URL") from error
    except (api.Unauthorized, api.Forbidden) as error:
        raise StoreDenied(
            f"{what}: {error.message}; give this service account roles/storage.objectUser on the bucket"
        ) from error
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise StoreDenied(f"{what}: no credentials; run `gcloud auth application-default login` here") from error
    except api.TooManyRequests as error:
        raise StoreThrottled(f"{what}: {error.message}") from error
    except (
        api.GoogleAPICallError,  # 429, 5xx, and a 4xx we did not foresee: never taken for an answer
        api.RetryError,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        DataCorruption,
        google.auth.exceptions.TransportError,
        google.auth.exceptions.RefreshError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise StoreUnavailable(f"{what}: {type(error).__name__}: {error}") from error
