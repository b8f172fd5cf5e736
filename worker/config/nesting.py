"""INV-8: the time limits nest, and the settings refuse to load if they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.config.limits import BUSY_TIMEOUT_SECONDS, HELD_SHARE, OIDC_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from worker.config import Settings


def broken(settings: Settings) -> list[str]:
    """INV-8: the sentences for the time limits that do not nest."""
    hold, deadline = settings.hold_limit_seconds, settings.ack_deadline_seconds
    attempt = BUSY_TIMEOUT_SECONDS + settings.sync_timeout_seconds + settings.upload_spacing_seconds
    rules = [
        (
            attempt < hold,
            f"ACK_DEADLINE_SECONDS is {deadline:g} and must be more than {attempt / HELD_SHARE:g} with "
            f"UPLOAD_SPACING_SECONDS {settings.upload_spacing_seconds:g}: a request is held for 80 % of it, and a "
            f"group needs {attempt:g} s to end",
        ),
        (
            not settings.push_audience or OIDC_TIMEOUT_SECONDS + hold < deadline,
            f"ACK_DEADLINE_SECONDS is {deadline:g} and must be more than {OIDC_TIMEOUT_SECONDS / (1 - HELD_SHARE):g} with "
            f"PUSH_AUDIENCE: a push may wait {OIDC_TIMEOUT_SECONDS:g} s for certificates, and is then held for 80 % of it",
        ),
    ]
    return [sentence for holds, sentence in rules if not holds]
