"""Holds the one-way imports: experts <- router_svc <- cluster, and the floors inside each."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.floors import FLOORS, WITHOUT
from tests.source import ROOT, modules


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_go_down(module: str, path: Path) -> None:
    found = imported(path)
    for prefix, banned in WITHOUT.items():
        if within(module, prefix):
            wrong = sorted(n for n in found for b in banned if within(n, b))
            assert not wrong, f"{module} is in {prefix} and must not import {wrong}"
    package, *rest = module.split(".")
    if not rest:
        return
    own = floor(package, rest[0])
    above = sorted(n for n in found if n.startswith(f"{package}.") and floor(package, n.split(".")[1]) > own)
    assert not above, f"{module} stands on floor {own} of {package} and must not import {above}"


def floor(package: str, part: str) -> int:
    """The number of the floor on which a module or folder of a package stands."""
    found = [number for number, parts in enumerate(FLOORS[package]) if part in parts.split()]
    assert len(found) == 1, f"{package}.{part} stands on floors {found}, expected one: add it to FLOORS"
    return found[0]


@pytest.mark.parametrize("package", FLOORS)
def test_no_module_and_no_folder_imports_its_way_back_to_itself(package: str) -> None:
    known = {module: path for module, path in modules() if within(module, package) and path.name != "__init__.py"}
    needs = {module: imported(path) & known.keys() - {module} for module, path in known.items()}
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the way

    def folder(module: str) -> str:
        return ".".join(module.split(".")[:2])

    folders: dict[str, set[str]] = {}
    for module, others in needs.items():
        folders.setdefault(folder(module), set()).update(folder(other) for other in others)
    graphlib.TopologicalSorter({name: others - {name} for name, others in folders.items()}).prepare()


def test_the_map_is_what_the_docstrings_say() -> None:
    done = subprocess.run([sys.executable, ROOT / ".ci" / "map", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_init_files_hold_a_docstring_only() -> None:
    allowed = {"router_svc.client"}  # users import the client from the package itself
    for module, path in modules():
        if path.name == "__init__.py" and module not in allowed:
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, f"{path} holds more than its docstring"
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_tests_import_helpers_and_never_each_other() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        wrong = [name for name in imported(path) if any(part.startswith("test_") for part in name.split("."))]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: what two need belongs in a helper"
