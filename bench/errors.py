"""Why there are no figures."""


class Worthless(RuntimeError):
    """What was measured is no figure: something was lost, refused or not what it should have been."""


class WrkMissing(RuntimeError):
    """wrk is not installed; the message says how to get it."""
