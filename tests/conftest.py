"""What every test finds."""

import signal

from tests import warm_python

# A shell that starts something in the background lets it ignore Ctrl-C, and so do the processes that this one starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

warm_python.install()
