"""The part statics: directories that the proxy serves itself."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import StaticsSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import guest_path, http_path

_NONE = StaticsSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> StaticsSpec:
    """Statics keep the user's order: the first prefix that matches serves. A bucket may be served from its root."""
    statics = config.statics
    if not statics:
        return _NONE
    spec = StaticsSpec()
    for i, static in enumerate(statics):
        field = f"statics[{i}]"
        bucket = static.tigris_bucket
        path = static.guest_path or ("/" if bucket else "")
        guest_path(path, f"{field}.guest_path", problems, root=bool(bucket))
        if not static.url_prefix:
            problems.add(f"{field}.url_prefix", 'is required, such as "/static"')
        spec.statics.add(
            guest_path=path,
            url_prefix=http_path(static.url_prefix, "", f"{field}.url_prefix", problems),
            tigris_bucket=bucket,
            index_document=static.index_document,
        )
    return spec


PART = Part("statics", owns=("statics",), converters={1: convert})
