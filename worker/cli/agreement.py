"""How a command that destroys or undoes something is agreed to: one way for all of them.

With `--yes` it goes on. On a terminal it asks, and only what is typed after the question answers it. Elsewhere it says what
it would do, and does nothing.
"""

import contextlib
import sys
import termios


def agreed(what: str, *, yes: bool) -> bool:
    """Whether to go on.

    Args:
        what: What would be done, such as "this would erase user 5 for good".
        yes: Whether `--yes` was given.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{what}; add --yes to do it", file=sys.stderr)
        return False
    with contextlib.suppress(OSError, TypeError, ValueError, termios.error):  # a test's terminal has no descriptor
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # an Enter that was typed too early, for another command, is no answer
    print(f"{what}: go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
