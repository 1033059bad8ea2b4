"""Requests to create a machine, as clients send them: valid ones, and invalid ones with what has to be answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def valid_samples() -> dict[str, bytes]:
    """Bodies that must be accepted, by name."""
    return {path.stem: path.read_bytes() for path in sorted((_FOLDER / "valid").glob("*.json"))}


def invalid_samples() -> dict[str, dict[str, Any]]:
    """By name: {"request": body, "expect": {"status", "field"}}."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted((_FOLDER / "invalid").glob("*.json"))}
