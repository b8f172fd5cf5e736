"""Why there are no figures, and the exit codes of that."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class Worthless(RuntimeError):
    """What was measured is no figure: something was lost, refused or not what it should have been."""


class WrkMissing(RuntimeError):
    """wrk is not installed; the message says how to get it."""


def with_exit_code(main: Callable[P, None]) -> Callable[P, int]:
    """A script's exit code: 0 good figures, 1 worthless ones, 2 wrk is missing; the last two are said."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            main(*args, **kwargs)
        except WrkMissing as missing:
            print(f"error: {missing}", file=sys.stderr)
            return 2
        except Worthless as fault:
            print(f"not a figure: {fault}", file=sys.stderr)
            return 1
        return 0

    return run
