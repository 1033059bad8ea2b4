"""Files that are put into the machine."""

from __future__ import annotations

import base64
import binascii

from services.central.legacy.values import (
    MB,
    Json,
    Wrong,
    either,
    get_dicts,
    get_guest_path,
    get_int,
    get_str,
    in_range,
    note,
    quoted,
)

FILE_SOURCES = ("raw_value", "secret_name", "image_config")
MAX_CONTENT = MB


def files_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    files = file_list(config, "files", wrong)
    for file in files:
        # The archive that carried files to the hosts knew no special bits.
        file["mode"] &= 0o777
    return {"files": files}


def file_list(holder: Json, field: str, wrong: Wrong) -> list[Json]:
    files, total = [], 0
    for i, asked in enumerate(get_dicts(holder, "files", field, wrong)):
        at = f"{field}[{i}]"
        file: Json = {"path": get_guest_path(asked, "guest_path", f"{at}.guest_path", wrong)}
        sources = {key: get_str(asked, key, f"{at}.{key}", wrong) for key in FILE_SOURCES}
        given = [key for key in FILE_SOURCES if sources[key]]
        if len(given) != 1:
            note(wrong, at, f"must have one source ({either(FILE_SOURCES)}), has {len(given)}")
        elif given[0] == "raw_value":
            content = decoded(sources["raw_value"], f"{at}.raw_value", wrong)
            total += len(content)
            if total > MAX_CONTENT:
                note(wrong, f"{at}.raw_value", f"must not bring all files above {MAX_CONTENT} bytes")
            file["content"] = base64.b64encode(content).decode()
        else:
            file[given[0]] = sources[given[0]]
        mode = get_int(asked, "mode", f"{at}.mode", wrong)
        file["mode"] = 0o644 if mode is None else in_range(mode, 0, 0o7777, f"{at}.mode", wrong)
        files.append(file)
    return files


def decoded(text: str, field: str, wrong: Wrong) -> bytes:
    try:
        return binascii.a2b_base64(text.encode(), strict_mode=True)
    except ValueError:
        note(wrong, field, f"must be base64, is {quoted(text)}")
        return b""
