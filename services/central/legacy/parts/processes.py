"""What runs: environment, init, processes."""

from __future__ import annotations

from services.central.legacy.values import (
    MAX_MB,
    MB,
    Json,
    Wrong,
    check_variable,
    either,
    entry,
    get_bool,
    get_choice,
    get_command,
    get_count,
    get_dict,
    get_dicts,
    get_str,
    get_str_map,
    get_strs,
    note,
    quoted,
)

MACHINE_FIELDS = {
    name: "MACHINE_FIELD_" + name.upper() for name in ("id", "version", "app_name", "private_ip", "region", "image")
}


def env_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    spec = env_v2(config, facts, wrong)
    # Values went through a form on the web once, which stripped them.
    return {"variables": {name: value.rstrip() for name, value in spec["variables"].items()}}


def env_v2(config: Json, _facts: Json, wrong: Wrong) -> Json:
    return {"variables": environment(config, "env", wrong)}


def environment(holder: Json, field: str, wrong: Wrong) -> dict[str, str]:
    variables = get_str_map(holder, "env", field, wrong)
    for name in variables:
        check_variable(name, entry(field, name), wrong)
    return variables


def init_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    init = get_dict(config, "init", "init", wrong)
    return {
        "exec": get_command(init, "exec", "init.exec", wrong),
        "entrypoint": get_command(init, "entrypoint", "init.entrypoint", wrong),
        "cmd": get_strs(init, "cmd", "init.cmd", wrong),
        "tty": get_bool(init, "tty", "init.tty", wrong),
        "swap_bytes": get_count(init, "swap_size_mb", "init.swap_size_mb", wrong, MAX_MB) * MB,
        "kernel_args": get_strs(init, "kernel_args", "init.kernel_args", wrong),
    }


def processes_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    converted = []
    for i, asked in enumerate(get_dicts(config, "processes", "processes", wrong)):
        field = f"processes[{i}]"
        process = one_process(asked, field, wrong)
        process["ignore_app_secrets"] = get_bool(asked, "ignore_app_secrets", f"{field}.ignore_app_secrets", wrong)
        converted.append(process)
    return {"processes": converted}


def one_process(asked: Json, field: str, wrong: Wrong) -> Json:
    secrets: dict[str, str] = {}
    for i, secret in enumerate(get_dicts(asked, "secrets", f"{field}.secrets", wrong)):
        at = f"{field}.secrets[{i}]"
        variable = own_variable(secret, secrets, at, wrong)
        secrets[variable] = get_str(secret, "name", f"{at}.name", wrong) or variable
    env_from: dict[str, str] = {}
    for i, source in enumerate(get_dicts(asked, "env_from", f"{field}.env_from", wrong)):
        at = f"{field}.env_from[{i}]"
        variable = own_variable(source, env_from, at, wrong)
        env_from[variable] = get_choice(source, "field_ref", MACHINE_FIELDS, "", f"{at}.field_ref", wrong)
        if not env_from[variable]:
            note(wrong, f"{at}.field_ref", f"is required: one of {either(MACHINE_FIELDS)}")
    return {
        "exec": get_command(asked, "exec", f"{field}.exec", wrong),
        "entrypoint": get_command(asked, "entrypoint", f"{field}.entrypoint", wrong),
        "cmd": get_strs(asked, "cmd", f"{field}.cmd", wrong),
        "user": get_str(asked, "user", f"{field}.user", wrong),
        "env": environment(asked, f"{field}.env", wrong),
        "secrets": secrets,
        "env_from": env_from,
    }


def own_variable(holder: Json, taken: dict[str, str], field: str, wrong: Wrong) -> str:
    variable = get_str(holder, "env_var", f"{field}.env_var", wrong)
    check_variable(variable, f"{field}.env_var", wrong)
    if variable in taken:
        note(wrong, f"{field}.env_var", f"must be there once, is {quoted(variable)} again")
    return variable
