"""The .proto is the contract: frozen here, and the checked-in code is what it gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from router_svc.proto import tokenyard_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("proto_golden.txt")


def listing() -> str:
    """Every service, method, message and field, a line each."""
    lines = []
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            stream = "stream " if method.server_streaming else ""
            lines.append(f"{service.name}.{method.name}({method.input_type.name}) -> {stream}{method.output_type.name}")
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        for field in message.fields:
            kind = field.message_type.name if field.message_type else field.type
            label = "repeated" if field.is_repeated else "optional" if field.has_presence else "plain"
            lines.append(f"{message.name}.{field.name} = {field.number} {kind} {label}")
    return "\n".join(sorted(lines)) + "\n"


def test_fields_and_methods_are_frozen() -> None:
    assert listing() == GOLDEN.read_text(), "changing the contract is a decision: update proto_golden.txt with it"


def test_generated_code_is_what_the_proto_gives(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools comes with the dev extra")
    flags = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *flags, "router_svc/proto/tokenyard.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    for name in ("tokenyard_pb2.py", "tokenyard_pb2.pyi", "tokenyard_pb2_grpc.py"):
        made = (tmp_path / "router_svc/proto" / name).read_text()
        assert made == (ROOT / "router_svc/proto" / name).read_text(), f"{name}: run `make proto`"
