"""Generates the gRPC stubs from `protos/` when the project is installed, as a wheel and as an editable install alike.

Run as a script, it generates them in place: `python hatch_build.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
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
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "protos.bin"
        outputs += [f"--descriptor_set_out={described}", "--include_source_info"]
        if protoc.main(["protoc", *(f"-I{path}" for path in includes), *outputs, *sources]) != 0:
            raise RuntimeError("protoc refused the protos; see its message above")
        descriptions = protos / "skerry" / "machines" / "v1" / "descriptions.json"
        _write_descriptions(described.read_bytes(), descriptions)
    return [descriptions, *(path for path in protos.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"})]


DESCRIBED = ("skerry/machines/v1/", "skerry/types/v1/config.proto", "skerry/types/v1/machine.proto")
"""Protos whose comments the public API shows: descriptors have none at run time."""


def _write_descriptions(descriptor_set: bytes, target: Path) -> None:
    """Write the comments of the public protos, by full name, as one JSON object."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    comments: dict[str, str] = {}
    for file in FileDescriptorSet.FromString(descriptor_set).file:
        if file.name.startswith(DESCRIBED):
            names = dict(_names(file))
            for location in file.source_code_info.location:
                if location.leading_comments and (name := names.get(tuple(location.path))) is not None:
                    comments[name] = " ".join(location.leading_comments.split())
    text = json.dumps(comments, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    # Replaced at once: a gateway that starts meanwhile reads the old or the new one.
    scratch = target.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(target)


def _names(file: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """Where in a file's source information a thing is commented, and its full name."""
    for at, service in enumerate(file.service):
        yield (6, at), (name := f"{file.package}.{service.name}")
        yield from (((6, at, 2, number), f"{name}.{method.name}") for number, method in enumerate(service.method))
    for at, message in enumerate(file.message_type):
        yield (4, at), (name := f"{file.package}.{message.name}")
        yield from (((4, at, 2, number), f"{name}.{field.name}") for number, field in enumerate(message.field))
    for at, enum in enumerate(file.enum_type):
        yield (5, at), (name := f"{file.package}.{enum.name}")
        yield from (((5, at, 2, number), f"{name}.{value.name}") for number, value in enumerate(enum.value))


class StubsBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Generated code is not in git, so it is added to what hatch packs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        build_data["artifacts"] += [str(path.relative_to(root)) for path in generate(root)]


if __name__ == "__main__":
    for generated in generate(Path(__file__).parent):
        print(generated)
