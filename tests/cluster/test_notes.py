"""Notes in processes of their own: outputs that are full, broken, closed or not read."""

import os
import subprocess
import sys

import pytest

from tests.patience import PATIENCE

_WRITE = """
import logging, sys
from cluster.serve.notes import drop_unwritable, open_closed, ready, say
open_closed()
drop_unwritable()
for _ in range(int(sys.argv[1])):
    ready("x" * 100)
    say("y\\udcff" * 100)
    logging.getLogger("z").warning("z" * 100)
"""
_CLOSED = """
import os, socket, sys
from cluster.serve.notes import open_closed
open_closed()
with socket.socket() as first, open(sys.argv[1], "w") as out:
    print("lost")
    print(first.fileno() > 2, [os.readlink(f"/proc/self/fd/{n}") for n in range(3)], file=out)
"""


def write(lines: int, stdout: int, stderr: int) -> int:
    """The exit code of a process that writes so many lines of each kind."""
    command = [sys.executable, "-c", _WRITE, str(lines)]
    return subprocess.run(command, stdout=stdout, stderr=stderr, timeout=PATIENCE).returncode


@pytest.mark.parametrize("way", ["full", "broken", "not read"])
def test_what_can_not_be_written_is_dropped(way: str) -> None:
    reader, writer = os.pipe()
    if way == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    if way != "not read":
        os.close(reader)
    try:
        assert write(2000, writer, writer) == 0  # ten times what a pipe holds
    finally:
        os.close(writer)
        if way == "not read":
            os.close(reader)


def test_what_can_be_written_is_written_whole() -> None:
    command = [sys.executable, "-c", _WRITE, "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == ("x" * 100 + "\n") * 300
    assert done.stderr.count("z" * 100 + "\n") == 300
    assert done.stderr.count("y\\udcff" * 100 + "\n") == 300


def test_nothing_gets_the_numbers_of_closed_outputs(tmp_path: os.PathLike[str]) -> None:
    out = os.path.join(tmp_path, "out")
    shell = 'exec "$0" "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable, "-c", _CLOSED, out], timeout=PATIENCE)
    assert done.returncode == 0
    with open(out) as found:
        assert found.read() == "True ['/dev/null', '/dev/null', '/dev/null']\n"


def test_an_exit_code_does_not_depend_on_who_reads_the_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cluster.cli.main", "no-such-verb"]
        assert subprocess.run(command, stderr=full, timeout=PATIENCE).returncode == 2
