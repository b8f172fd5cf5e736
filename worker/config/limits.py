"""Limits that an operator has no reason to change, and that nest with settings or with one another (INV-8)."""

from typing import Final

PLATFORM_GRACE_SECONDS: Final = 10.0
"""Cloud Run kills an instance this long after SIGTERM; not configurable (Cloud Run documentation, "Container contract")."""

BODY_MAX_BYTES: Final = 14_000_000
"""Largest push body: Pub/Sub's largest message is 10 MB; base64 makes it 13.4 MB, and the envelope adds a little."""
HELD_SHARE: Final = 0.8
"""Of ACK_DEADLINE_SECONDS: a request is held so long at most, and the rest is for the answer's way back."""
BUSY_TIMEOUT_SECONDS: Final = 5.0
"""Longest a transaction waits for Litestream's checkpoint to let go of the database; Litestream asks for at least 5 s."""
OIDC_TIMEOUT_SECONDS: Final = 5.0
"""Longest a push waits for certificates that are not there yet, before 503: several times a slow answer."""
DRAIN_SECONDS: Final = 4.0
"""At shutdown, longest wait for what is in flight. The four together leave the platform's ten seconds two to spare."""
ACKNOWLEDGE_SECONDS: Final = 1.0
"""At shutdown, longest wait until Pub/Sub knows what became of each message that was pulled."""
RELEASE_SECONDS: Final = 1.5
"""At shutdown, longest wait to release the lease: it may have to wait for the second of the last renewal to pass."""
TRACE_FLUSH_SECONDS: Final = 1.0
"""At shutdown, longest wait for the last spans to be exported: the lease is released already."""
RECEIPT_DAYS_MIN: Final = 32.0
"""Pub/Sub can deliver again what it retained for 31 days."""
