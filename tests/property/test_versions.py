"""Updates: in any order of delivery, however often, over restarts and replays, the row is the one that the versions say.

Messages that create, update and delete users and orders are drawn at random, and delivered at random: some again, some
groups in a new life, and now and then to a store that has lost what came last, to which everything is delivered once more.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from tests.property.test_outcomes import Sent, Service, Store
from worker.ingest import outcomes

HISTORIES: Final = 50
DELIVERIES: Final = 200
"""In each history; 10,000 in all."""
USERS: Final = 5
ORDERS: Final = 5
_START: Final = 1_700_000_000_000


def messages(draw: random.Random) -> list[Sent]:
    """Of each user and order at most one message that creates it, and some that change it."""
    made: list[Sent] = []

    def add(event: str, data: dict[str, Any], time: int) -> None:
        made.append(Sent(f"{10 + len(made)}", json.dumps(data).encode(), (("event_type", event),), time, None))

    for user_id in range(1, USERS + 1):
        if draw.random() < 0.8:
            add("user.created", {"user_id": user_id, "email_address": "first"}, _START + draw.randrange(5000))
        for number in range(draw.randrange(5)):
            time = _START + draw.randrange(4) * 1000  # now and then the same as another's
            if draw.random() < 0.3:
                add("user.deleted", {"user_id": user_id}, time)
            else:
                add(
                    "user.updated",
                    {"user_id": user_id, "email_address": f"{number}", "settings": draw.choice([None, "s"])},
                    time,
                )
    for order_id in range(1, ORDERS + 1):
        if draw.random() < 0.8:
            add("order.placed", {"order_id": order_id, "customer_id": order_id, "note": "first"}, _START)
        for revision in draw.sample(range(9), draw.randrange(5)):
            data = {"order_id": order_id, "customer_id": order_id, "revision": revision, "note": f"{revision}"}
            add("order.changed", data, _START + draw.randrange(5000))
    return made


def expected(sent: Sequence[Sent]) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """The users and the orders that the versions say, from docs/events.md alone."""
    users: dict[int, dict[str, Any]] = {}
    orders: dict[int, dict[str, Any]] = {}
    updates: dict[tuple[str, int], list[tuple[Any, str, dict[str, Any]]]] = {}
    for each in sent:
        event, data = dict(each.attributes)["event_type"], json.loads(each.data)
        if event == "user.created":
            users[data["user_id"]] = {
                "email_address": data["email_address"],
                "created_at": each.publish_time // 1000,
                "deleted": 0,
                "settings": None,
            }
        elif event == "order.placed":
            orders[data["order_id"]] = {"customer_id": data["customer_id"], "note": data["note"]}
        elif event == "order.changed":
            updates.setdefault(("orders", data["order_id"]), []).append((data["revision"], event, data))
        else:
            updates.setdefault(("users", data["user_id"]), []).append(((each.publish_time, each.message_id), event, data))
    for (table, key), versions in updates.items():
        _, event, data = max(versions, key=lambda version: version[0])
        if table == "orders":
            orders[key] = {"customer_id": data["customer_id"], "note": data["note"]}
            continue
        there = users.setdefault(key, {"created_at": None})
        there |= {"email_address": data.get("email_address"), "settings": data.get("settings")}
        there["deleted"] = int(event == "user.deleted")
    return users, orders


async def deliver(service: Service, sent: Sequence[Sent], draw: random.Random) -> int:
    """Deliver all of it in a random order, some of it often, over lives and losses; how many deliveries."""
    waiting = [*sent, *draw.choices(sent, k=DELIVERIES - len(sent))]
    draw.shuffle(waiting)
    older = None
    await service.begin()
    for group in _groups(waiting, draw):
        await service.deliver(group)
        if draw.random() < 0.1:
            await service.end()
            await service.begin()
            older = service.store.copy()
    if older is not None:  # a recovery to an earlier state, and the replay of everything, in another order
        await service.end()
        older()
        await service.begin()
        waiting += (again := draw.sample(sent, len(sent)))
        await service.deliver(again)
    await service.end()
    return len(waiting)


def _groups(sent: Sequence[Sent], draw: random.Random) -> Iterator[Sequence[Sent]]:
    begin = 0
    while begin < len(sent):
        end = begin + draw.randrange(1, 8)
        yield sent[begin:end]
        begin = end


def check(seeds: Sequence[int]) -> int:
    """Hold the rows of so many histories against the versions; how many messages were delivered."""
    count = 0
    for seed in seeds:
        draw = random.Random(seed)
        sent = messages(draw)
        with tempfile.TemporaryDirectory() as directory:
            service = Service(Store(Path(directory) / "users.db"), draw.randrange(1, 9))
            count += asyncio.run(deliver(service, sent, draw))
            rows = service.rows()
        assert (rows.users, rows.orders) == expected(sent), f"the rows of history {seed}"
    return count


def test_the_rows_are_what_the_versions_say_in_any_order() -> None:
    """10,000 deliveries of created, updated and deleted, with duplicates, restarts and replays."""
    assert check(range(HISTORIES)) >= HISTORIES * DELIVERIES


@contextmanager
def the_last_one_wins() -> Iterator[None]:
    """Mutant: the version that is kept is not looked at."""
    with mock.patch.object(outcomes._Decider, "_version", return_value=None):
        yield


@contextmanager
def a_tie_goes_to_the_last() -> Iterator[None]:
    """Mutant: of two messages of one version the later one wins."""
    with mock.patch.object(outcomes, "_order", return_value=0):
        yield


@contextmanager
def a_late_creation_is_passed_over() -> Iterator[None]:
    """Mutant: a user.created that comes after an update gives nothing."""
    with mock.patch.object(outcomes._Decider, "_fill", lambda self, table, content, row: row):
        yield


@pytest.mark.parametrize("mutant", [the_last_one_wins, a_tie_goes_to_the_last, a_late_creation_is_passed_over])
def test_a_mutant_is_caught(mutant: Callable[[], AbstractContextManager[None]]) -> None:
    """A writer without one of the rules ends in other rows."""
    with mutant(), pytest.raises(AssertionError, match=r"^the rows of history"):
        check(range(HISTORIES))
