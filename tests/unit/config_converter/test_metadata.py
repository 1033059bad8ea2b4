from __future__ import annotations

from services.config_converter.parts.metadata import PART
from tests.unit.config_converter.judging import accept, refuse


def test_metadata_stay_as_they_are_also_empty_values() -> None:
    metadata = {"fly_process_group": "app", "team": "", "a=b": "ü"}
    assert dict(accept(PART, {"metadata": metadata}).entries) == metadata
    assert dict(accept(PART, {}).entries) == {}


def test_an_empty_key_is_refused() -> None:
    assert list(refuse(PART, {"metadata": {"": "x", "a": "y"}})) == ['metadata[""]']
