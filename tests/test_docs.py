"""The pages name files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_PATH = re.compile(r"(?<![\w./-])((?:cluster|experts|router_svc|tests|k8s|docs|\.ci)/[\w./-]*\w)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_on_a_page_exist(page: Path) -> None:
    text = re.sub(r"[\w./-]*[<*…{][^\s|)]*", "", page.read_text())  # patterns of names
    missing = sorted({path for path in _PATH.findall(text) if not (ROOT / path).exists()})
    assert not missing
