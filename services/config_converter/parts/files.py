"""The part files: files that are written below the machine's root before it starts.

Containers have files by the same rules.
"""

from __future__ import annotations

import binascii

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from skerry.types.v1.config_pb2 import File, MachineConfig
from skerry.types.v1.spec_pb2 import FileSpec, FilesSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import LARGEST_MODE, MIB, guest_path, shown

DEFAULT_MODE = 0o644
MOST_CONTENT = MIB
"""Bytes of content that one list of files may have in total."""

SOURCES = ("raw_value", "secret_name", "image_config")

_NONE = FilesSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> FilesSpec:
    """Files keep the user's order: a later one overwrites an earlier one with its path."""
    files = config.files
    if not files:
        return _NONE
    spec = FilesSpec()
    fill_files(spec.files, files, problems)
    return spec


def fill_files(
    target: RepeatedCompositeFieldContainer[FileSpec],
    files: RepeatedCompositeFieldContainer[File],
    problems: Problems,
) -> None:
    """Decode a list of files; their contents together have MOST_CONTENT bytes at most."""
    total = 0
    for i, file in enumerate(files):
        spec, here = target.add(), problems.below(f"files[{i}]")
        _fill_file(spec, file, here)
        total += len(spec.content)
        if total > MOST_CONTENT:
            here.add("raw_value", f"must keep all files within {MOST_CONTENT} bytes, has the byte {total}")


def _fill_file(spec: FileSpec, file: File, problems: Problems) -> None:
    spec.path = guest_path(file.guest_path, "guest_path", problems)
    if spec.path.endswith("/"):
        problems.add("guest_path", f'must name a file, not end with "/", is {shown(file.guest_path)}')
    sources = [name for name in SOURCES if getattr(file, name)]
    if len(sources) != 1:
        has = " and ".join(sources) if sources else "none"
        problems.add("", f"must have exactly one of raw_value, secret_name and image_config, has {has}")
    elif file.raw_value:
        spec.content = _decoded(file.raw_value, "raw_value", problems)
    elif file.secret_name:
        spec.secret_name = file.secret_name
    else:
        spec.image_config = file.image_config
    mode = file.mode if file.HasField("mode") else DEFAULT_MODE
    if mode > LARGEST_MODE:
        problems.add("mode", f"must be 0..{LARGEST_MODE} (octal {LARGEST_MODE:o}), is {mode}")
    spec.mode = mode


def _decoded(text: str, field: str, problems: Problems) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        problems.add(field, f"must be base64 (A-Z, a-z, 0-9, + and /, padded with =), is {shown(text)}")
        return b""


PART = Part("files", owns=("files",), converters={1: convert})
