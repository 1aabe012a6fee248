"""The wheel installs into an empty environment and serves the small model from there."""

import json
import subprocess
import sys
import threading
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_serves_from_an_empty_environment(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("tokenyard-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, cwd=tmp_path)
    command = str(tmp_path / "env" / "bin" / "tokenyard")
    server = subprocess.Popen(
        [command, "serve", "--grpc-port", "0", "--http-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    threading.Thread(target=lambda: list(server.stderr or []), daemon=True).start()
    try:
        line = server.stdout.readline()
        target = line.split("grpc ")[1].split(",")[0]
        chat = [command, "chat", "--target", target, "--json", "--temperature", "0"]
        done = subprocess.run(chat, input="/think What is 457 + 386?\n", capture_output=True, text=True, cwd=tmp_path)
        assert json.loads(done.stdout)["content"].strip() == "843"
    finally:
        server.terminate()
        assert server.wait(40) == 0
