"""k8s/ against the core schemas, and Dockerfile, pod and command line against each other."""

import copy
from fnmatch import fnmatch
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_validate.utils import ValidationError

from cluster.config import ServeConfig, default_of, flag_name
from tests.image import KUBERNETES, demo, documents, size, stages
from tests.source import ROOT

VERSION = kubernetes_validate.latest_version()
CORE = [(path, document) for path, document in documents(KUBERNETES) if document["kind"] != "Kustomization"]


def pod() -> dict[str, Any]:
    return demo("Deployment")["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return only


@pytest.mark.parametrize("document", [document for _, document in CORE], ids=[path.stem for path, _ in CORE])
def test_objects_follow_the_schemas(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schemas_find_a_misspelling() -> None:
    wrong = copy.deepcopy(demo("Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_service_finds_the_pod_and_its_ports() -> None:
    deployment, service = demo("Deployment")["spec"], demo("Service")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    named = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert named == {"grpc": default_of("grpc_port"), "http": default_of("http_port")}
    assert {port["targetPort"] for port in service["ports"]} == set(named)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert {file for file in demo("Kustomization")["resources"]} == {path.name for path, _ in CORE}


def test_the_pod_says_what_serve_understands() -> None:
    verb, *options = container()["args"]
    assert verb == "serve"
    names = [flag_name(name) for name in ServeConfig.__slots__]
    assert all(option.removeprefix("--") in names for option in options if option.startswith("--"))
    assert pod()["terminationGracePeriodSeconds"] > default_of("grace_period"), "a SIGTERM drains that long"
    assert stages()[-1].entrypoint == ["tokenyard"]
    assert "command" not in container(), "the image's entrypoint runs"
    assert f"-t {container()['image']} ." in (ROOT / "Dockerfile").read_text(), "the name that the Dockerfile gives"


def test_the_pod_may_do_little_and_write_to_tmp_only() -> None:
    allowed, secure = pod()["securityContext"], container()["securityContext"]
    assert allowed["runAsNonRoot"]
    assert secure == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert stages()[-1].user == f"{allowed['runAsUser']}:{allowed['runAsGroup']}"
    assert {mount["mountPath"] for mount in container()["volumeMounts"]} == {"/tmp", "/dev/shm"}
    (shm,) = (volume["emptyDir"] for volume in pod()["volumes"] if volume["name"] == "shm")
    assert size(shm["sizeLimit"]) < size(container()["resources"]["limits"]["memory"]) / 4, "it counts as memory"


def test_what_the_image_is_made_of_is_there() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    build, image = stages()
    for source in [word for words in build.copies for word in words[:-1]]:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule) for rule in sent), f"{source} is not sent to the builder"
    assert build.base == image.base, "a .venv works with the Python that it was made with"
    assert image.env["TOKENYARD_KERNEL_CACHE"] == build.env["TOKENYARD_KERNEL_CACHE"]
    makefile = (ROOT / "Makefile").read_text()
    assert "TORCH_CPU_INDEX ?= https://" in makefile, "the Dockerfile reads it"
