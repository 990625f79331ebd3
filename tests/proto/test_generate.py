"""The committed stubs are what the sources give."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import moorage.proto.v1 as stubs
from moorage.proto.v1 import moorage_pb2 as pb

FOLDER = Path(stubs.__path__[0]).parent


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("proto_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.generate(tmp_path)
    assert len(made) == 3
    for path in made:
        assert path.read_text() == (FOLDER / path.relative_to(tmp_path)).read_text(), path.name


def test_package_is_versioned() -> None:
    assert pb.DESCRIPTOR.package == "moorage.v1"
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["Moorage"].methods}
    of_sessions = {"ListSessions", "DeleteSession", "RenameSession", "PinSession", "ForkSession"} | {
        "SaveSession",
        "LoadSession",
    }
    assert methods == {"Generate", "Score", "Tokenize", "Detokenize", "ListModels", "GetStatus"} | of_sessions
