"""Holds the one-way imports: experts <- router_svc <- cluster, and the finer arrows inside."""

import ast
from pathlib import Path

import pytest

from tests.source import ROOT, modules

# A module under the first prefix imports nothing under any of the others.
FORBIDDEN = {
    "experts": ("router_svc", "cluster"),
    "router_svc": ("cluster",),
    "experts.exchange": ("experts.slots", "experts.rank_loop", "experts.worker", "experts.layers", "ray"),
    "experts.worker": ("ray", "experts.host", "experts.remote"),
    "experts.host": ("ray",),
    "experts.deadlines": ("torch", "ray", "time"),
    "experts.checkpoint": ("experts.exchange", "experts.slots", "ray"),
    "experts.kernels": ("experts.exchange", "ray"),
    "experts.placement": ("torch", "ray"),
    "experts.ladder": ("torch", "time"),
    "experts.background": ("torch", "ray"),
    "router_svc.sampling": ("torch", "ray", "grpc", "pydantic", "experts"),
    "router_svc.models": ("router_svc.engine.step_loop", "router_svc.api", "router_svc.text", "ray", "grpc"),
    "router_svc.engine": ("router_svc.api", "router_svc.text", "router_svc.link", "ray", "grpc"),
    "router_svc.engine.scheduler": ("torch", "time"),
    "router_svc.engine.kv_pages": ("torch", "time"),
    "router_svc.engine.prefix": ("torch", "time"),
    "router_svc.text": ("torch", "ray", "grpc", "router_svc.engine", "router_svc.models.parts"),
    "router_svc.client": ("torch", "ray", "router_svc.engine", "router_svc.models"),
    "cluster.cli.main": ("typer", "numpy", "yaml", "rich", "torch", "ray", "grpc", "experts", "router_svc"),
    "cluster.cli": ("torch", "ray"),
    "cluster.lifecycle": ("torch", "ray", "time"),
    "cluster.cell": ("ray", "cluster.simulate", "cluster.supervisor"),
    "cluster.plan": ("ray", "cluster.simulate"),
    "cluster.orders": ("ray", "cluster.simulate"),
    "cluster.balance": ("torch", "ray", "cluster.simulate", "cluster.bench", "cluster.supervisor"),
    "cluster.simulate.replay": ("torch", "ray"),
    "cluster.simulate.traffic": ("torch", "ray"),
}


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
def test_imports_go_one_way(module: str, path: Path) -> None:
    for prefix, banned in FORBIDDEN.items():
        if not within(module, prefix):
            continue
        wrong = sorted(n for n in imported(path) for b in banned if within(n, b))
        assert not wrong, f"{module} is in {prefix} and must not import {wrong}"


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
