"""What all tests need: signals as a terminal gives them.

A shell has what it starts in the background ignore SIGINT, and nohup SIGHUP; all that the tests start would ignore them
too. A handler in this process is no handler in what it starts, which gets the default.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)
