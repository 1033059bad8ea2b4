"""Restart and stop."""

from __future__ import annotations

from services.central.legacy.values import (
    MAX_INT,
    Json,
    Wrong,
    get_bool,
    get_choice,
    get_dict,
    get_duration,
    get_int,
    in_range,
    is_set,
    seconds,
)
from services.runtime.durations import SECOND

POLICIES = ("no", "on-failure", "always")
SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM")


def restart_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    auto_destroy = get_bool(config, "auto_destroy", "auto_destroy", wrong)
    once = auto_destroy or is_set(config, "schedule")
    asked = get_dict(config, "restart", "restart", wrong)
    return {**restart_rule(asked, "no" if once else "on-failure", "restart", wrong), "auto_destroy": auto_destroy}


def restart_rule(asked: Json, default: str, field: str, wrong: Wrong) -> Json:
    policy = get_choice(asked, "policy", POLICIES, default, f"{field}.policy", wrong)
    retries = get_int(asked, "max_retries", f"{field}.max_retries", wrong)
    retries = 10 if retries is None else in_range(retries, 0, MAX_INT, f"{field}.max_retries", wrong)
    return {
        "policy": "RESTART_POLICY_" + policy.upper().replace("-", "_"),
        "max_retries": retries if policy == "on-failure" else 0,
    }


def stop_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    return stop_rule(get_dict(config, "stop_config", "stop_config", wrong), "stop_config", wrong)


def stop_rule(asked: Json, field: str, wrong: Wrong) -> Json:
    return {
        "signal": get_choice(asked, "signal", SIGNALS, "SIGINT", f"{field}.signal", wrong),
        "timeout": seconds(get_duration(asked, "timeout", 5 * SECOND, f"{field}.timeout", wrong)),
    }
