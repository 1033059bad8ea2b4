"""The legacy conversion: a machine's public configuration, part by part, to what the platform runs.

Plain dicts in, plain dicts out. It has grown beside the regions' converter and knows nothing of it; where version 1 of
a part gives something else than version 1 in the regions, QUIRKS says so.
"""

from services.central.legacy.converters import CONVERTERS, PARTS, convert_part
from services.central.legacy.quirks import QUIRKS

__all__ = ["CONVERTERS", "PARTS", "QUIRKS", "convert_part"]
