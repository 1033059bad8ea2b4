"""What is small: metrics, statics, metadata, schedule, standbys, rootfs."""

from __future__ import annotations

import re
from typing import Any

from services.central.legacy.values import (
    GB,
    MAX_GB,
    MAX_MB,
    MB,
    Json,
    Wrong,
    entry,
    get_bool,
    get_choice,
    get_count,
    get_dict,
    get_dicts,
    get_guest_path,
    get_http_path,
    get_int,
    get_list,
    get_str,
    get_str_map,
    get_strs,
    in_range,
    is_set,
    need_port,
    note,
    quoted,
)


def metrics_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    asked = get_dict(config, "metrics", "metrics", wrong)
    if not any(is_set(asked, key) for key in ("port", "path", "https")):
        return {}
    return {
        "port": need_port(asked, "port", "metrics.port", wrong),
        "path": get_http_path(asked, "path", "/metrics", "metrics.path", wrong),
        "https": get_bool(asked, "https", "metrics.https", wrong),
    }


def statics_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    statics = []
    for i, asked in enumerate(get_dicts(config, "statics", "statics", wrong)):
        field = f"statics[{i}]"
        bucket = get_str(asked, "tigris_bucket", f"{field}.tigris_bucket", wrong)
        if bucket and not is_set(asked, "guest_path"):
            asked = {**asked, "guest_path": "/"}
        if not is_set(asked, "url_prefix"):
            note(wrong, f"{field}.url_prefix", "is required")
        statics.append(
            {
                "guest_path": get_guest_path(asked, "guest_path", f"{field}.guest_path", wrong, root=bucket != ""),
                "url_prefix": get_http_path(asked, "url_prefix", "", f"{field}.url_prefix", wrong),
                "tigris_bucket": bucket,
                "index_document": get_str(asked, "index_document", f"{field}.index_document", wrong),
            }
        )
    return {"statics": statics}


def metadata_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    entries = get_str_map(config, "metadata", "metadata", wrong)
    if "" in entries:
        note(wrong, entry("metadata", ""), "must have a key")
    # Empty has always meant "not set" in the old store.
    return {"entries": {key: value for key, value in entries.items() if value}}


def schedule_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    # Cron's own names were compared without regard to case.
    asked = {"schedule": get_str(config, "schedule", "schedule", wrong).lower()}
    interval = get_choice(asked, "schedule", ("hourly", "daily", "weekly", "monthly"), "", "schedule", wrong)
    return {"interval": "SCHEDULE_INTERVAL_" + (interval.upper() or "UNSPECIFIED")}


def standbys_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    machines = get_strs(config, "standbys", "standbys", wrong)
    if machines and get_list(config, "services", "services", wrong):
        note(wrong, "standbys", "cannot be given for a machine with services")
    for i, machine in enumerate(machines):
        if not re.match(r"[0-9a-f]{14}\Z", machine):
            note(wrong, f"standbys[{i}]", f"must be the id of a machine, is {quoted(machine)}")
    return {"machine_ids": machines}


PERSISTS: dict[Any, str] = {
    None: "",
    "": "",
    0: "",
    1: "never",
    2: "restart",
    3: "always",
    "never": "never",
    "restart": "restart",
    "always": "always",
}


def rootfs_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    own = get_dict(config, "rootfs", "rootfs", wrong)
    persist = persistence(own, "persist", "rootfs.persist", wrong)
    guest = get_dict(config, "guest", "guest", wrong)
    of_guest = persistence(guest, "persist_rootfs", "guest.persist_rootfs", wrong)
    if persist and of_guest and persist != of_guest:
        note(wrong, "rootfs.persist", f"must be what guest.persist_rootfs is ({of_guest}), is {persist}")
    size = get_int(own, "size_gb", "rootfs.size_gb", wrong)
    cache = get_dict(config, "cache_drive", "cache_drive", wrong)
    return {
        "persist": "PERSIST_ROOTFS_" + (persist or of_guest or "never").upper(),
        "size_bytes": (8 if size is None else in_range(size, 1, MAX_GB, "rootfs.size_gb", wrong)) * GB,
        "cache_bytes": get_count(cache, "size_mb", "cache_drive.size_mb", wrong, MAX_MB) * MB,
    }


def persistence(holder: Json, key: str, field: str, wrong: Wrong) -> str:
    value = holder.get(key)
    if isinstance(value, int | str | None) and not isinstance(value, bool) and value in PERSISTS:
        return PERSISTS[value]
    note(wrong, field, f"must be never, restart or always, is {quoted(value)}")
    return quoted(value)
