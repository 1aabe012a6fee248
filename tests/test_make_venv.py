"""`make venv`: which Python, which torch, and what an interruption leaves. Python and pip are stubs that note calls."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RELEASE = next(
    line.split("==")[1] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
)
CPU, CUDA, REST = f"torch=={RELEASE}+cpu", f"torch=={RELEASE},!={RELEASE}+cpu", "-c constraints.txt -e .[dev]"
PUBLIC = "--retries 0 --timeout 10 --index-url https://cpu.example/whl"
# Answers as Python would to what .ci/venv asks; FOLDER/has-* say what pip finds, FOLDER/torch what is installed.
PYTHON = """#!/bin/sh
call="$*"
case $call in
*version_info*3,\\ 11*) exit {old} ;;
*version_info*2*) echo {release} ;;
*ensurepip*) exit 0 ;;
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "$(basename "$0") $call" >>{folder}/calls ;;
"-m pip --disable-pip-version-check --version") [ ! -e .venv/no-pip ] ;;
-) cat {folder}/torch ;;
"-m cluster.kernels") ;;
*)
    echo "$call" | sed 's/-m pip.* --quiet //; s/--no-deps //; s/--force-reinstall //' >>{folder}/calls
    case $call in
    *index-url*) [ -e {folder}/has-public ] || exit 1; echo "{torch} cpu" >{folder}/torch ;;
    *!=*) [ -e {folder}/has-cuda ] || exit 1; echo "{torch} cuda" >{folder}/torch ;;
    *torch==*) [ -e {folder}/has-cpu ] || exit 1; echo "{torch} cpu" >{folder}/torch ;;
    *) [ ! -e {folder}/fails ] || exit 1; [ ! -e {folder}/killed ] || {{ kill -9 $PPID; exit 1; }} ;;
    esac ;;
esac
"""


@dataclass(frozen=True)
class Project:
    """A folder with the Makefile, and one with commands that stand before the system's."""

    folder: Path
    commands: Path

    def command(self, name: str, text: str) -> None:
        (self.commands / name).write_text(text)
        (self.commands / name).chmod(0o755)

    def python(self, name: str, release: str, old: int = 0) -> None:
        self.command(name, PYTHON.format(folder=self.folder, torch=RELEASE, release=release, old=old))

    def make(self, *variables: str) -> "subprocess.CompletedProcess[str]":
        """`make venv`; what its pythons were asked is in `calls` afterwards."""
        (self.folder / "calls").write_text("")
        path = f"{self.commands}:/usr/bin:/bin"
        command = ["make", "venv", "TORCH_CPU_INDEX=https://cpu.example/whl", *variables]
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "TORCH", "MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            command, cwd=self.folder, env={**kept, "PATH": path}, capture_output=True, text=True, timeout=60
        )

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("what is done without an NVIDIA driver can't be tried beside one")
    folder, commands = tmp_path / "project", tmp_path / "bin"
    (folder / ".ci").mkdir(parents=True)
    commands.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/venv"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "torch").write_text("")
    made = Project(folder, commands)
    made.command("uname", "#!/bin/sh\necho Linux\n")
    made.command("nvidia-smi", "#!/bin/sh\nexit 9\n")
    made.command("python3.11", "#!/bin/sh\necho 'shim: python3.11: not installed' >&2\nexit 127\n")
    made.python("python3.12", "3.12")
    made.python("python3.13", "3.13")
    return made


def test_the_first_python_that_works_is_taken_and_the_second_make_does_nothing(project: Project) -> None:
    (project.folder / "has-cpu").touch()
    done = project.make()
    assert done.returncode == 0, done.stderr
    assert project.calls == ["python3.12 -m venv .venv", CPU, REST]
    assert project.make().returncode == 0
    assert project.calls == []
    os.utime(project.folder / "constraints.txt", (2**31, 2**31))
    assert project.make().returncode == 0
    assert project.calls == [REST], "torch is there already"


def test_python_can_be_chosen_and_an_old_one_is_refused_in_one_line(project: Project) -> None:
    (project.folder / "has-cpu").touch()
    project.python("python3.9", "3.9", old=1)
    for name, found in (("python3.9", r"PYTHON=python3.9 (3.9)"), ("python3.11", "PYTHON=python3.11 (does not run)"),
                        ("nowhere", "no command PYTHON=nowhere")):  # fmt: skip
        done = project.make(f"PYTHON={name}")
        first, second = done.stderr.splitlines()
        assert found in first, done.stderr
        assert "expected" in first
        assert second.startswith("make: ***"), "make's own last word"
    assert project.make("PYTHON=python3.13").returncode == 0
    assert project.calls[0] == "python3.13 -m venv .venv"
    assert project.make("PYTHON=python3.12").returncode == 0
    assert project.calls[0] == "python3.12 -m venv .venv", "another release makes the environment anew"


@pytest.mark.parametrize(
    ("torch", "has", "asked", "said"),
    [
        ("auto", "cpu public", [CPU], "from the configured index"),
        ("auto", "public", [CPU, f"{PUBLIC} {CPU}"], "from https://cpu.example/whl"),
        ("auto", "cuda", [CPU, f"{PUBLIC} {CPU}"], "PyPI's brings 2.7 GB of CUDA"),
        ("auto", "driver cuda cpu", [CUDA], "with CUDA"),
        ("auto", "driver cpu", [CUDA], "no CUDA build"),
        ("cpu", "driver cpu cuda", [CPU], "from the configured index"),
        ("cuda", "cpu cuda", [CUDA], "with CUDA"),
    ],
)
def test_torch_comes_from_where_it_should(project: Project, torch: str, has: str, asked: list[str], said: str) -> None:
    if "driver" in has:
        project.command("nvidia-smi", "#!/bin/sh\nexit 0\n")
    for name in has.split():
        (project.folder / f"has-{name}").touch()
    done = project.make(f"TORCH={torch}")
    assert done.returncode == 0, done.stderr
    assert project.calls[1:] == [*asked, REST]
    (line,) = done.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("torch", "said"), [("cpu", f"no torch {RELEASE}+cpu"), ("cuda", "no CUDA"), ("gpu", "auto, cpu or")]
)
def test_a_torch_that_is_not_there_is_refused(project: Project, torch: str, said: str) -> None:
    done = project.make(f"TORCH={torch}")
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]


def test_an_interrupted_make_is_repaired_by_the_next(project: Project) -> None:
    (project.folder / "has-cpu").touch()
    (project.folder / "killed").touch()
    assert project.make().returncode != 0
    (project.folder / "killed").unlink()
    (project.folder / "torch").write_text("")
    assert project.make().returncode == 0
    assert project.calls == ["python3.12 -m venv .venv", CPU, REST], "half an installation is not built upon"
    (project.folder / ".venv/.installed").unlink()
    (project.folder / ".venv/no-pip").touch()
    assert project.make().returncode == 0
    assert project.calls[0] == "python3.12 -m venv .venv", "an environment without pip"


def test_a_registry_that_is_down_costs_no_environment(project: Project) -> None:
    (project.folder / "has-cpu").touch()
    assert project.make().returncode == 0
    os.utime(project.folder / "pyproject.toml", (2**31, 2**31))
    (project.folder / "fails").touch()
    assert project.make().returncode != 0
    (project.folder / "fails").unlink()
    assert project.make().returncode == 0
    assert project.calls == [REST]


def test_an_environment_is_made_by_one_make_at_a_time(project: Project) -> None:
    (project.folder / ".venv").mkdir()
    with subprocess.Popen(["sh", "-c", "read line", "ci/venv"], stdin=subprocess.PIPE) as other:
        (project.folder / ".venv/.unfinished").write_text(f"{other.pid}\n")
        done = project.make()
        assert done.returncode == 2
        assert f"process {other.pid} is making .venv" in done.stderr
        assert project.calls == []
        other.communicate(b"\n")
    (project.folder / "has-cpu").touch()
    assert project.make().returncode == 0
