"""What does `publisher load` cost beside a bare loop over Google's client?

Both publish the same file of users to a Pub/Sub on loopback that only answers (bench/topic.py), in turn, each in a process
of its own. The bare loop publishes each line as it stands, with the same attributes and the same batches, and then waits for
every answer; it reads no record, checks nothing, bounds nothing and accounts for nothing. Timed is what comes after the
imports: from the first line that is read to the last answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import part, process
from bench.errors import Worthless
from bench.figures import Figure, Target
from bench.part import Scale
from local.ports import free_port
from local.worker_process import ROOT, wait_until
from publisher import settings
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE
from worker.events.users import USER_CREATED

QUESTION: Final = "load: what does `publisher load` cost beside Google's client alone?"
_TOPIC: Final = "projects/bench/topics/users"
_OF_BARE: Final = Target("≥", 0.7)


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    rates: dict[str, list[float]] = {"load": [], "bare": []}
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="solowriter-bench-") as name:
        file, log = Path(name) / "users.jsonl", Path(name) / "topic.log"
        with file.open("w") as lines:
            lines.writelines(
                f'{{"user_id": {n}, "email_address": "user{n}@example.com"}}\n' for n in range(1, scale.lines + 1)
            )
        environment = {**os.environ, "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{port}", "TOPIC": _TOPIC, "PYTHONPATH": str(ROOT)}
        commands = {
            "load": [sys.executable, "-m", "publisher", "load", str(file), "--json"],
            "bare": [sys.executable, "-m", "bench.load", "--bare", str(file)],
        }
        with (
            log.open("wb") as output,
            process.running([sys.executable, "-m", "bench.topic", "--port", str(port)], log=output),
        ):
            wait_until(lambda: log.read_bytes() != b"", "the topic")
            for run in range(scale.runs):
                for which in ("load", "bare") if run % 2 else ("bare", "load"):
                    rates[which].append(scale.lines / _seconds(commands[which], environment, scale.lines))
                    part.say(f"{which}: {rates[which][-1]:,.0f} lines/s")
    return [
        Figure(f"`publisher load` of {scale.lines:,} lines, lines/s", rates["load"]),
        Figure(f"bare loop over the same {scale.lines:,} lines, lines/s", rates["bare"]),
        Figure("load / bare loop", [ours / bare for ours, bare in zip(*rates.values(), strict=True)], ".2f", _OF_BARE),
    ]


def _seconds(command: Sequence[str], environment: dict[str, str], lines: int) -> float:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Worthless(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    said = json.loads(done.stdout)
    if said["accepted"] != lines:
        raise Worthless(f"{' '.join(command)} had {said['accepted']} of {lines} lines accepted")
    return float(said["seconds"])


def bare(file: Path) -> dict[str, float]:
    """Publish each line of a file; how many were accepted, and in what time."""
    from google.cloud import pubsub_v1

    batches = pubsub_v1.types.BatchSettings(
        max_messages=settings.BATCH_MESSAGES, max_bytes=settings.BATCH_BYTES, max_latency=settings.BATCH_SECONDS
    )
    client = pubsub_v1.PublisherClient(batch_settings=batches)
    began = time.monotonic()
    with file.open("rb") as lines:
        answers = [client.publish(_TOPIC, line.strip(), **{EVENT_TYPE_ATTRIBUTE: USER_CREATED.name}) for line in lines]
    accepted = sum(answer.result() != "" for answer in answers)
    return {"accepted": accepted, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        print(json.dumps(bare(Path(sys.argv[2]))))
    else:
        sys.exit(part.main("load"))
