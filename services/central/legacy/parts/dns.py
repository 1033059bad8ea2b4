"""Name resolution."""

from __future__ import annotations

import re

from services.central.legacy.values import (
    Json,
    Wrong,
    get_bool,
    get_dict,
    get_dicts,
    get_str,
    get_strs,
    is_address,
    is_host_name,
    note,
    quoted,
)


def dns_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    asked = get_dict(config, "dns", "dns", wrong)
    servers = get_strs(asked, "nameservers", "dns.nameservers", wrong)
    for i, address in enumerate(servers):
        if not is_address(address):
            note(wrong, f"dns.nameservers[{i}]", f"must be an IP address, is {quoted(address)}")
    searches = get_strs(asked, "searches", "dns.searches", wrong)
    for i, domain in enumerate(searches):
        check_domain(domain, f"dns.searches[{i}]", wrong)
    options = []
    for i, option in enumerate(get_dicts(asked, "options", "dns.options", wrong)):
        name = get_str(option, "name", f"dns.options[{i}].name", wrong)
        value = get_str(option, "value", f"dns.options[{i}].value", wrong)
        if not name or any(c.isspace() for c in name + value):
            note(wrong, f"dns.options[{i}].name", f"must be an option without white space, is {quoted(name)}")
        options.append({"name": name, "value": value})
    rules: dict[str, str] = {}
    for i, rule in enumerate(get_dicts(asked, "dns_forward_rules", "dns.dns_forward_rules", wrong)):
        at = f"dns.dns_forward_rules[{i}]"
        domain = get_str(rule, "basename", f"{at}.basename", wrong)
        check_domain(domain, f"{at}.basename", wrong)
        if domain in rules:
            note(wrong, f"{at}.basename", f"must be there once, is {quoted(domain)} again")
        rules[domain] = get_str(rule, "addr", f"{at}.addr", wrong)
        if not is_server(rules[domain]):
            note(wrong, f"{at}.addr", f"must be an IP address, with or without a port, is {quoted(rules[domain])}")
    names = {key: get_str(asked, key, f"dns.{key}", wrong) for key in ("hostname", "hostname_fqdn")}
    for key, name in names.items():
        if name and not is_host_name(name):
            note(wrong, f"dns.{key}", f"must be the name of a host, is {quoted(name)}")
    return {
        "register": not get_bool(asked, "skip_registration", "dns.skip_registration", wrong),
        "nameservers": servers,
        "searches": searches,
        "options": options,
        "forward_rules": rules,
        **names,
    }


def check_domain(domain: str, field: str, wrong: Wrong) -> None:
    if domain != "." and not is_host_name(domain, underscores=True):
        note(wrong, field, f"must be a domain, is {quoted(domain)}")


def is_server(text: str) -> bool:
    if is_address(text):
        return True
    match = re.match(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})\Z", text)
    if not match:
        return False
    return is_address(match.group(1) or match.group(2)) and 1 <= int(match.group(3)) <= 65535
