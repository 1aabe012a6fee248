"""The start command of k8s/cpu-demo under what a pod gives it: it becomes ready, answers, and ends on SIGTERM."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image import demo, size, stages
from tests.namespaces import Limits, pod, skip_unless_possible
from tests.patience import wait_until
from tests.serving import START_SECONDS
from tests.source import ROOT

SHM = 64 << 20  # what container runtimes give; the Deployment asks for more
INSIDE = "/opt/tokenyard"  # where the image has what this test has in its own environment


@pytest.fixture
def image_folder() -> Iterator[Path]:
    """The image's kernels, made as the Dockerfile says, in a folder that any user may enter."""
    skip_unless_possible()
    folder = Path(tempfile.mkdtemp(prefix="ty-image-"))
    folder.chmod(0o755)
    build = stages()[0]
    cache = build.env["TOKENYARD_KERNEL_CACHE"].replace(INSIDE, str(folder))
    make = build.runs[-1].replace(f"{INSIDE}/bin/python", sys.executable)
    subprocess.run(["sh", "-c", make], check=True, env={**os.environ, "TOKENYARD_KERNEL_CACHE": cache})
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_pod_serves_and_ends(image_folder: Path, tmp_path: Path) -> None:
    spec = demo("Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    image = stages()[-1]
    env = {name: value.replace(INSIDE, str(image_folder)) for name, value in image.env.items()}
    env |= {"PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": "/", "HOSTNAME": "tokenyard-0"}
    command = [str(Path(sys.prefix) / "bin" / image.entrypoint[0]), *container["args"]]
    packages = [Path(entry) for entry in sys.path if entry.endswith("site-packages")]
    limits = Limits(
        user=spec["securityContext"]["runAsUser"], shm=SHM, memory=size(container["resources"]["limits"]["memory"]),
        visible=(ROOT, Path(sys.prefix), Path(sys.base_prefix), *packages, image_folder),
    )  # fmt: skip
    probe = container["readinessProbe"]["httpGet"]
    port = next(port["containerPort"] for port in container["ports"] if port["name"] == probe["port"])
    with pod(command, env, limits, tmp_path) as running:
        wait_until(
            lambda: running.process.poll() is not None or running.fetch(probe["path"], port) is not None,
            "an answer to the probe", START_SECONDS,
        )  # fmt: skip
        wait_until(lambda: running.process.poll() is not None or "tokenyard ready" in running.text, "the ready line")
        assert running.process.poll() is None, running.text
        asked = {"messages": [{"role": "user", "content": "/think 12 + 30"}], "temperature": 0, "max_tokens": 200}
        answer = running.fetch("/v1/chat/completions", port, asked)
        assert answer is not None, running.text
        assert json.loads(answer)["choices"][0]["message"]["content"].strip() == "42"
        kernels = {path.parent for path in running.mapped() if path.suffix == ".so" and "kernels" in path.parts[-2]}
        assert {folder.name for folder in kernels} == {"kernels"}, f"taken from the image, found {kernels}"
        peak = running.memory_peak()
        print(f"peak {peak >> 20} MiB of {limits.memory >> 20}")
        running.init.terminate()
        code = running.process.wait(spec["terminationGracePeriodSeconds"])
        assert code == 0, running.text
    assert "Traceback" not in running.text
