"""INV-8: the time limits nest, and the settings refuse to load if they do not."""

from worker.config.limits import BUSY_TIMEOUT_SECONDS, HELD_SHARE, OIDC_TIMEOUT_SECONDS


def broken(*, deadline: float, hold: float, sync: float, spacing: float, tokens: bool) -> list[str]:
    """The sentences for the time limits that do not nest; each argument is in seconds.

    Args:
        deadline: ACK_DEADLINE_SECONDS.
        hold: How long a request is held.
        sync: How long a confirmation may take.
        spacing: UPLOAD_SPACING_SECONDS.
        tokens: Whether PUSH_AUDIENCE is set.
    """
    attempt = BUSY_TIMEOUT_SECONDS + sync + spacing
    rules = [
        (
            attempt < hold,
            f"ACK_DEADLINE_SECONDS is {deadline:g} and must be more than {attempt / HELD_SHARE:g} with "
            f"UPLOAD_SPACING_SECONDS {spacing:g}: a request is held for 80 % of it, and a "
            f"group needs {attempt:g} s to end",
        ),
        (
            not tokens or OIDC_TIMEOUT_SECONDS + hold < deadline,
            f"ACK_DEADLINE_SECONDS is {deadline:g} and must be more than {OIDC_TIMEOUT_SECONDS / (1 - HELD_SHARE):g} with "
            f"PUSH_AUDIENCE: a push may wait {OIDC_TIMEOUT_SECONDS:g} s for certificates, and is then held for 80 % of it",
        ),
    ]
    return [sentence for holds, sentence in rules if not holds]
