"""Epochs of links end at any moment, in a C program (soak.c) that compilers' sanitizers watch."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from experts import env
from experts.kernels.build import SOURCES
from tests.patience import PATIENCE

KERNELS = SOURCES[0].parent
SOAK = Path(__file__).with_name("soak.c")  # includes link_tokens.c
FLAGS = ("-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", f"-I{KERNELS}")
SANITIZERS = {
    "threads": ("-fsanitize=thread",),
    "addresses": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
TRIVIAL = "#include <pthread.h>\nstatic void *f(void *x) { return x; }\nint main(void) { pthread_t t; " + (
    "return pthread_create(&t, 0, f, 0) || pthread_join(t, 0); }\n"
)
ENDINGS = {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def built(folder: Path, flags: tuple[str, ...]) -> Path:
    """The soak with a sanitizer. Skips the test where a program of three lines can't be built with it or does not run."""
    trivial, program = folder / "trivial.c", folder / "soak"
    trivial.write_text(TRIVIAL)
    for command in (
        [env.compiler(), *FLAGS, *flags, str(trivial), "-o", str(folder / "trivial")],
        [folder / "trivial"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except OSError as error:
            pytest.skip(f"no C compiler: {error}")
        if done.returncode:
            pytest.skip(f"{flags[0]} does not work here: {(done.stderr.strip().splitlines() or ['no word'])[0]}")
    sources = [str(file) for file in (KERNELS / "links.c", KERNELS / "split.c", SOAK)]
    command = [env.compiler(), *FLAGS, "-Wall", "-Wextra", "-Werror", *flags, *sources, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return program


def soak(program: Path, seconds: float, epochs: int) -> None:
    """For so long and so many epochs at least."""
    seed = random.SystemRandom().randrange(1 << 32)
    command = [str(program), str(seed), str(seconds), str(epochs)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + PATIENCE, env={**os.environ, **ENDINGS}
    )
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("kind", SANITIZERS)
def test_epochs_end_at_any_moment(kind: str, tmp_path: Path) -> None:
    soak(built(tmp_path, SANITIZERS[kind]), seconds=2, epochs=50)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SANITIZERS)
def test_many_epochs_end_at_any_moment(kind: str, tmp_path: Path) -> None:
    program = built(tmp_path, SANITIZERS[kind])
    for _ in range(6):
        soak(program, seconds=10, epochs=50)
