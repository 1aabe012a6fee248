"""Where compiled kernels are kept and taken from: read-only images, homes that can't be written, folders of others."""

import logging
import os
from pathlib import Path

import pytest

from experts.kernels.build import BuildFailed, library


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compiler that writes a line; caches and temporary files lie in folders of the test."""
    path = tmp_path / "cc"
    path.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho built > "$2"\n')
    path.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("CC", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("TOKENYARD_KERNEL_CACHE", raising=False)
    return path


def test_compiling_is_said_once_and_its_result_is_private_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        first, second = library("portable"), library("portable")
    assert first == second
    assert first.parent == tmp_path / "cache/tokenyard/kernels"
    assert first.parent.stat().st_mode & 0o777 == 0o700
    (record,) = caplog.records
    assert record.message.startswith("compiling C kernels (portable)")


def test_an_image_brings_its_kernels_and_needs_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: Path
) -> None:
    library("portable")
    monkeypatch.setenv("TOKENYARD_KERNEL_CACHE", str(tmp_path / "image"))
    built = library("portable")
    assert built.parent == tmp_path / "image", "also if the builder's own cache has it"
    assert built.stat().st_mode & 0o777 == 0o755, "any user id of a container reads it"
    compiler.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1")
    assert library("portable") == built
    with pytest.raises(BuildFailed, match="no C compiler"):
        library("avx2")


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_a_home_that_cannot_be_written_costs_no_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv(variable, "/proc/1")
    built = library("portable")
    assert built.parent == tmp_path / f"tmp/tokenyard-kernels-{os.getuid()}"
    assert built.parent.stat().st_mode & 0o777 == 0o700


def test_code_is_not_taken_from_where_others_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = library("portable").parent
    shared.chmod(0o777)
    built = library("portable")
    assert built.parent == tmp_path / f"tmp/tokenyard-kernels-{os.getuid()}"
    built.chmod(0o775)
    (tmp_path / "tmp" / f"tokenyard-kernels-{os.getuid()}").chmod(0o770)
    with pytest.raises(BuildFailed, match="others can write to it"):
        library("portable")
