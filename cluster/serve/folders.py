"""Folders that a start needs: the current one, and one of a private Ray's own for sockets, logs and spilled objects."""

import os
import tempfile
from pathlib import Path

from cluster.serve.notes import say
from experts.env import temp_folders
from experts.errors import UserError

SOCKET_PATH = 107  # bytes that the system allows for a socket's path
_BELOW = "/ty-12345678/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # Ray's, below ours
LONGEST = SOCKET_PATH - len(_BELOW)  # bytes of the folder that the session's lies in


def session_folder() -> Path:
    """Make one where TMPDIR says, or in /tmp or /var/tmp, with a line, where that can't be. Raises UserError."""
    asked, refused = temp_folders(), []
    for name, folder in [*asked, ("", "/tmp"), ("", "/var/tmp")]:
        try:
            found = _below(folder)
        except OSError as error:
            refused.append(f"{name or folder}: {error.strerror}")
            continue
        if refused:
            say(f"tokenyard: {'; '.join(refused)}; Ray's files are in {found}")
        return found
    raise UserError("; ".join(refused), "a folder for Ray's sockets that can be written", "TMPDIR")


def _below(folder: str) -> Path:
    length = len(os.fsencode(os.path.abspath(folder)))
    if length > LONGEST:
        raise OSError(0, f"{length} bytes, too long for sockets below it (at most {LONGEST})")
    return Path(tempfile.mkdtemp(prefix="ty-", dir=os.path.abspath(folder)))


def check_current_folder() -> None:
    """Raise UserError when the current folder was removed: relative paths lead nowhere, and Ray can't start in it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("one that was removed", "one that exists", "the current folder") from None
