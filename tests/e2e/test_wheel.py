"""The wheel carries all it needs, and serves the small model from an environment of its own and an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.serving import end, run, serving
from tests.source import PACKAGES, ROOT

QUICK_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
# What is in the packages beside Python: wheels leave out silently what pyproject.toml does not name.
DATA = ("*.c", "*.h", "*.proto", "*.pyi", "*.json", "*.jsonl", "*.safetensors")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools leaves files of earlier builds in the source's folder and packs them again."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*QUICK_PIP, "wheel", "--no-deps", "--wheel-dir", str(out), str(source)], check=True, cwd=out)
    (built,) = out.glob("tokenyard-*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    packed = set(ZipFile(wheel).namelist())
    there = {
        str(path.relative_to(ROOT)) for package in PACKAGES for kind in ("*.py", *DATA)
        for path in (ROOT / package).rglob(kind)
    }  # fmt: skip
    assert sorted(there - packed) == []


def test_the_wheel_serves_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python, tokenyard = (str(tmp_path / "env/bin" / name) for name in ("python", "tokenyard"))
    subprocess.run(
        [*QUICK_PIP, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True, cwd=tmp_path
    )
    # Other packages are those of this environment; a plain path brings no editable tokenyard with it.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (site / "others.pth").write_text("\n".join(others))
    (tmp_path / "empty").mkdir()
    options = {"cwd": tmp_path / "empty", "env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}
    found = subprocess.run(
        [python, "-c", "import cluster, experts, router_svc as r; print(cluster.__file__, experts.__file__, r.__file__)"],
        capture_output=True, text=True, check=True, **options,
    )  # fmt: skip
    assert all(Path(file).is_relative_to(site) for file in found.stdout.split())
    with serving("--expert-workers", "0", command=[tokenyard], **options) as (process, target, _):
        asked = run("chat", "--target", target, "--json", "--temperature", "0", text="/think What is 457 + 386?\n")
        assert json.loads(asked.stdout)["content"].strip() == "843"
        end(process)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_brings_all_that_a_cluster_needs(wheel: Path, tmp_path: Path) -> None:
    """Into an environment without the developers' packages; what is missing among the dependencies shows here."""
    venv.create(tmp_path / "env", with_pip=True)
    python, tokenyard = (str(tmp_path / "env/bin" / name) for name in ("python", "tokenyard"))
    install = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, cwd=tmp_path)
    with serving(command=[tokenyard], cwd=tmp_path) as (process, target, _):
        asked = run("chat", "--target", target, "--json", "--temperature", "0", text="/think What is 457 + 386?\n")
        assert json.loads(asked.stdout)["content"].strip() == "843"
        end(process)
