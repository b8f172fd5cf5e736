"""Faults on demand: rules that the fake Cloud Storage applies to its requests, and a client to set them.

A request is met by the rules in the order they were added: every delay that matches is added up, and the first other
action that matches decides. Faults strike after the request was read and before anything is done:

| action | the work is | the client sees |
|---|---|---|
| delay  | done, `seconds` later, even if the client has hung up by then | a slow answer |
| error  | not done | `status` |
| hang   | not done | nothing, until the rule is removed; then a closed connection |
| drop   | done | a closed connection, no answer |
| mute   | done | nothing, until the rule is removed; then a closed connection |
| refuse | not done | a closed connection |
| rate   | not done if the same name was hit less than `seconds` before | 429 |

A chunk of a resumable upload is the exception: it is struck before its bytes are read. Starting a session and each of
its chunks are one `insert` request each.

A rule with `after_bytes` meets an upload, of either kind, in the middle: when so many bytes of the object were received,
or all of them and the object is about to become whole.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

import httpx
import msgspec

from local.gcs_errors import ClientGoneError, GcsError, SeveredError, injected, invalid
from local.gcs_http import Reply, Request, json_reply

Verb = Literal["insert", "get", "download", "list", "delete", "patch", "bucket"]
Action = Literal["delay", "error", "hang", "drop", "mute", "refuse", "rate"]
VERBS: tuple[Verb, ...] = get_args(Verb)
ALL: Final = -1
"""For `after_bytes`: every byte of the object."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do to which requests.

    Args:
        action: See the module's table.
        verb: What the request does; `*` for anything.
        name: Prefix of the object's name (of a listing: of its prefix), or a pattern if it has one of `*?[`.
        seconds: How long a delay lasts; how far apart two requests for one name must be under a rate.
        status: What an error answers.
        share: Part of the matching requests that is hit, 0 to 1.
        times: How many requests are hit before the rule expires.
        seed: Makes the choice of the share repeatable.
        after_bytes: How many bytes of an upload's object were received when it is met, or `ALL`; None: see the module.
    """

    action: Action
    verb: Verb | Literal["*"] = "*"
    name: str = ""
    seconds: float = 0.0
    status: int = 503
    share: float = 1.0
    times: int | None = None
    seed: int | None = None
    after_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError("share is between 0 and 1")
        if self.seconds < 0 or not 400 <= self.status <= 599:
            raise ValueError("seconds is at least 0 and status between 400 and 599")
        if self.after_bytes is not None and (
            self.verb != "insert" or self.after_bytes not in {ALL, max(self.after_bytes, 1)}
        ):
            raise ValueError("after_bytes is at least 1, or -1 for all, and is met by inserts only")

    def fits(self, verb: Verb, name: str) -> bool:
        """Whether the rule is about such a request."""
        if self.verb not in {"*", verb}:
            return False
        if any(sign in self.name for sign in "*?["):
            return fnmatchcase(name, self.name)
        return name.startswith(self.name)


class _Active:
    """A rule in force. Only the event loop touches it."""

    def __init__(self, number: int, rule: Rule) -> None:
        self.number = number
        self.rule = rule
        self.hits = 0
        self.removed = asyncio.Event()
        self._random = random.Random(rule.seed)
        self._passed: dict[str, float] = {}  # when a request for each name was let through last

    def strikes(self, verb: Verb, name: str, kept: int | None) -> bool:
        rule = self.rule
        if rule.after_bytes != kept or not rule.fits(verb, name) or (rule.times is not None and self.hits >= rule.times):
            return False
        if rule.action == "rate" and time.monotonic() - self._passed.get(name, -rule.seconds) >= rule.seconds:
            self._passed[name] = time.monotonic()
            return False
        if rule.share < 1 and self._random.random() >= rule.share:
            return False
        self.hits += 1
        return True

    def described(self) -> dict[str, Any]:
        return {"id": self.number, "hits": self.hits, **msgspec.to_builtins(self.rule)}


class FaultPlan:
    """The server's side: the rules in force and the count of requests. Only the event loop touches it."""

    def __init__(self) -> None:
        self._active: dict[int, _Active] = {}
        self._last_number = 0
        self.requests: Counter[str] = Counter()

    async def meet(self, request: Request, verb: Verb, name: str) -> None:
        """Counts the request and lets the rules have it.

        Raises:
            GcsError: An injected error.
            SeveredError: Close the connection without an answer.
            ClientGoneError: The client gave up while it hung.
        """
        self.requests[verb] += 1
        await self._meet(request, verb, name, None)

    async def meet_whole(self, request: Request, name: str) -> None:
        """Lets the rules have an upload that is about to become an object; raises as `meet` does."""
        await self._meet(request, "insert", name, ALL)

    async def pass_through(
        self, request: Request, name: str, kept: int, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The bytes of an upload, cut where a rule meets it; `kept` were there before. Raises as `meet` does."""
        async for chunk in chunks:
            begin, rest = kept, chunk
            for mark in sorted({active.rule.after_bytes or 0 for active in self._active.values()}):
                if kept < mark <= begin + len(chunk):
                    yield rest[: mark - kept]
                    rest, kept = rest[mark - kept :], mark
                    await self._meet(request, "insert", name, mark)
            if rest:
                yield rest
            kept = begin + len(chunk)

    async def _meet(self, request: Request, verb: Verb, name: str, kept: int | None) -> None:
        delay, struck = self._struck(verb, name, kept)
        if delay:
            await asyncio.sleep(delay)
        if struck is not None:
            await self._strike(request, struck)

    def _struck(self, verb: Verb, name: str, kept: int | None) -> tuple[float, _Active | None]:
        delay = 0.0
        for active in self._active.values():
            if not active.strikes(verb, name, kept):
                continue
            if active.rule.action != "delay":
                return delay, active
            delay += active.rule.seconds
        return delay, None

    async def _strike(self, request: Request, active: _Active) -> None:
        action = active.rule.action
        if action in ("error", "rate"):
            raise injected(429 if action == "rate" else active.rule.status)
        if action == "drop":
            request.answer_dropped = True
            return
        if action == "mute":
            request.answer_held = active.removed
            return
        if action == "hang" and not await request.gone_or(active.removed):
            raise ClientGoneError
        raise SeveredError

    def add(self, rules: Iterable[Rule]) -> list[int]:
        """Puts rules in force; returns their numbers."""
        numbers = []
        for rule in rules:
            self._last_number += 1
            self._active[self._last_number] = _Active(self._last_number, rule)
            numbers.append(self._last_number)
        return numbers

    def clear(self, number: int | None = None) -> None:
        """Removes one rule, or all; what hangs on them is closed."""
        for each in [number] if number is not None else list(self._active):
            active = self._active.pop(each, None)
            if active is not None:
                active.removed.set()

    async def administer(self, request: Request) -> Reply:
        """Answers `/_faults`, `/_faults/NUMBER` and `/_stats`.

        Raises:
            GcsError: The request isn't one of these, or a rule is wrong.
        """
        segments = request.segments
        match request.method, segments:
            case "GET", ["_faults"]:
                return json_reply([active.described() for active in self._active.values()])
            case "POST", ["_faults"]:
                return json_reply(self.add(_rules(await request.read())))
            case "DELETE", ["_faults"]:
                self.clear()
            case "DELETE", ["_faults", number] if number.isdigit():
                self.clear(int(number))
            case "GET", ["_stats"]:
                return json_reply({verb: self.requests[verb] for verb in VERBS})
            case "DELETE", ["_stats"]:
                self.requests.clear()
            case _:
                raise GcsError(404, "notFound", "only /_faults and /_stats are administered here")
        return Reply(204)


def _rules(body: bytes) -> list[Rule]:
    try:
        return msgspec.json.decode(body, type=list[Rule])
    except msgspec.DecodeError as error:
        raise invalid(f"not a list of fault rules: {error}") from None


class Faults:
    """Sets faults in a running fake, and asks what it has seen.

    Args:
        url: Where the fake listens.
    """

    def __init__(self, url: str) -> None:
        # A connection per call, so that the same client goes on after a restart of the fake.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=10, limits=limits)

    def add(
        self,
        *,
        action: Action,
        verb: Verb | Literal["*"] = "*",
        name: str = "",
        seconds: float = 0.0,
        status: int = 503,
        share: float = 1.0,
        times: int | None = None,
        seed: int | None = None,
        after_bytes: int | None = None,
    ) -> int:
        """Puts a rule in force (see `Rule` for the arguments); returns its number."""
        rule = Rule(action, verb, name, seconds, status, share, times, seed, after_bytes)
        numbers: list[int] = self._call("POST", "/_faults", msgspec.json.encode([rule]))
        return numbers[0]

    def clear(self) -> None:
        """Removes all rules; what hangs on them is closed."""
        self._call("DELETE", "/_faults")

    def remove(self, number: int) -> None:
        """Removes one rule."""
        self._call("DELETE", f"/_faults/{number}")

    def rules(self) -> list[dict[str, Any]]:
        """The rules in force, each with its `id` and `hits`."""
        rules: list[dict[str, Any]] = self._call("GET", "/_faults")
        return rules

    def hits(self, number: int) -> int:
        """How many requests a rule has struck; 0 for one that was removed."""
        return next((rule["hits"] for rule in self.rules() if rule["id"] == number), 0)

    def wait_for_hits(self, number: int, at_least: int = 1, timeout: float = 30.0) -> None:
        """Returns once the rule has struck that many requests.

        Raises:
            TimeoutError: It didn't in `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while self.hits(number) < at_least:
            if time.monotonic() > end:
                raise TimeoutError(f"fault rule {number} struck {self.hits(number)} of {at_least} requests")
            time.sleep(0.005)

    def stats(self) -> dict[str, int]:
        """How many requests of each verb came since the start or `reset_stats`."""
        stats: dict[str, int] = self._call("GET", "/_stats")
        return stats

    def reset_stats(self) -> None:
        """Starts counting at 0."""
        self._call("DELETE", "/_stats")

    def close(self) -> None:
        """Closes the connection; the rules stay."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, path: str, content: bytes | None = None) -> Any:
        answer = self._http.request(method, path, content=content)
        if answer.is_error:
            raise ValueError(answer.text)
        return answer.json() if answer.content else None
