"""The Dockerfile and the pod's YAML as data, so that tests run what they say instead of repeating it."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.source import ROOT

KUBERNETES = ROOT / "k8s"
SIZES = {"Mi": 1 << 20, "Gi": 1 << 30}


@dataclass
class Stage:
    """What one FROM of the Dockerfile makes."""

    base: str
    runs: list[str] = field(default_factory=list)
    copies: list[list[str]] = field(default_factory=list)  # the words of COPY: flags, sources, destination
    env: dict[str, str] = field(default_factory=dict)
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def stages() -> list[Stage]:
    """The Dockerfile's, the image's last. Fails on an instruction that it does not know."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            found.append(Stage(rest.split()[0]))
        elif word == "RUN":
            found[-1].runs.append(rest)
        elif word == "COPY":
            found[-1].copies.append(rest.split())
        elif word == "ENV":
            found[-1].env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "USER":
            found[-1].user = rest
        elif word == "ENTRYPOINT":
            found[-1].entrypoint = json.loads(rest)
        elif word == "CMD":
            found[-1].command = json.loads(rest)
        else:
            assert word in ("WORKDIR", "EXPOSE"), word
    return found


def documents(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every YAML document below a folder, with its file."""
    return [
        (path, document)
        for path in sorted(folder.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]  # fmt: skip


def demo(kind: str) -> dict[str, Any]:
    """k8s/cpu-demo's one object of that kind."""
    (found,) = (document for _, document in documents(KUBERNETES / "cpu-demo") if document["kind"] == kind)
    return found


def size(text: str) -> int:
    """4Gi → bytes."""
    return int(text[:-2]) * SIZES[text[-2:]]
