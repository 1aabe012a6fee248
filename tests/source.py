"""The project's own modules, for tests that read their source."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("experts", "router_svc", "cluster")


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found
