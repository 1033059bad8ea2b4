"""Mounts, which ask where the volume is."""

from __future__ import annotations

from services.central.legacy.values import (
    GB,
    MAX_GB,
    Json,
    Wrong,
    get_bool,
    get_count,
    get_dicts,
    get_guest_path,
    get_str,
    note,
    quoted,
)


def mounts_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    asked = get_dicts(config, "mounts", "mounts", wrong)
    if len(asked) > 1:
        note(wrong, "mounts", f"must not be more than one, are {len(asked)}")
    return {"mounts": [one_mount(mount, facts, f"mounts[{i}]", wrong) for i, mount in enumerate(asked)]}


def one_mount(asked: Json, facts: Json, field: str, wrong: Wrong) -> Json:
    volume = get_str(asked, "volume", f"{field}.volume", wrong)
    name = get_str(asked, "name", f"{field}.name", wrong)
    by_id = volume.startswith("vol_")
    if not volume and not name:
        note(wrong, f"{field}.volume", "is required: the id of a volume, or its name in name")
    elif not by_id and volume and name and volume != name:
        note(wrong, f"{field}.volume", f"must be an id (vol_…) when name is given, is {quoted(volume)}")
    location = (facts.get("volume_location") or {}).get(volume or name)
    region = location.get("region") if isinstance(location, dict) else None
    if region and facts.get("region") and region != facts["region"]:
        note(wrong, f"{field}.volume", f"must be in the machine's region {facts['region']}, is in {region}")
    percent = get_count(asked, "extend_threshold_percent", f"{field}.extend_threshold_percent", wrong, 100)
    extend_by = get_count(asked, "add_size_gb", f"{field}.add_size_gb", wrong, MAX_GB)
    most = get_count(asked, "size_gb_limit", f"{field}.size_gb_limit", wrong, MAX_GB)
    size = get_count(asked, "size_gb", f"{field}.size_gb", wrong, MAX_GB)
    if 0 < most < size:
        note(wrong, f"{field}.size_gb_limit", f"must not be below size_gb ({size}), is {most}")
    if percent and not extend_by:
        extend_by = 1
    return {
        "volume_id": volume if by_id else "",
        "volume_name": name if by_id else name or volume,
        "path": get_guest_path(asked, "path", f"{field}.path", wrong),
        "extend_threshold_percent": percent,
        "extend_by_bytes": extend_by * GB,
        "extend_limit_bytes": most * GB,
        "size_bytes": size * GB,
        "encrypted": get_bool(asked, "encrypted", f"{field}.encrypted", wrong),
    }
