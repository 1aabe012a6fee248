"""Modules that load only where they are used, because they take long."""

import importlib
import signal
import threading
from typing import Any


def load(name: str) -> Any:
    """The module of that name. Ctrl-C while it loads ends the process by the signal: Python's own handler would raise
    inside of whatever the module's native part does, and print what can't be raised there."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        return importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return importlib.import_module(name)
    finally:
        signal.signal(signal.SIGINT, handler)
