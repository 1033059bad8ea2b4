"""Generates the gRPC stubs from `protos/` when the project is installed, as a wheel and as an editable install alike.

Run as a script, it generates them in place: `python hatch_build.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> list[Path]:
    """Generate stubs beside every .proto below `root`/protos; returns the generated files.

    Raises RuntimeError if protoc refuses a file (its own message is on stderr).
    """
    import google.api.annotations_pb2 as annotations
    import grpc_tools
    from grpc_tools import protoc

    protos = root / "protos"
    sources = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    includes = [protos, Path(grpc_tools.__file__).parent / "_proto", Path(annotations.__file__).parents[2]]
    # protoc looks its plugins up on the PATH, and an isolated build environment does not put its own scripts there.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    outputs = [f"--{plugin}_out={protos}" for plugin in ("python", "mypy", "grpc_python", "mypy_grpc")]
    if protoc.main(["protoc", *(f"-I{path}" for path in includes), *outputs, *sources]) != 0:
        raise RuntimeError("protoc refused the protos; see its message above")
    return [path for path in protos.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"}]


class StubsBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Generated code is not in git, so it is added to what hatch packs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        build_data["artifacts"] += [str(path.relative_to(root)) for path in generate(root)]


if __name__ == "__main__":
    for generated in generate(Path(__file__).parent):
        print(generated)
