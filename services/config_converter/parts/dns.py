"""The part dns: name resolution inside the machine."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import DNSSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import domain_name, host_name, ip, is_ip, shown

_DEFAULT = DNSSpec(register=True)


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> DNSSpec:
    """A machine is in the internal DNS unless it is left out."""
    if not config.HasField("dns"):
        return _DEFAULT
    dns = config.dns
    spec = DNSSpec(register=not dns.skip_registration, nameservers=dns.nameservers, searches=dns.searches)
    for i, address in enumerate(dns.nameservers):
        ip(address, f"dns.nameservers[{i}]", problems)
    for i, domain in enumerate(dns.searches):
        domain_name(domain, f"dns.searches[{i}]", problems)
    for i, option in enumerate(dns.options):
        if not option.name or any(map(str.isspace, option.name + option.value)):
            problems.add(f"dns.options[{i}].name", f"must be a resolver option without spaces, is {shown(option.name)}")
        spec.options.add(name=option.name, value=option.value)
    for i, rule in enumerate(dns.dns_forward_rules):
        field = f"dns.dns_forward_rules[{i}]"
        domain_name(rule.basename, f"{field}.basename", problems)
        if rule.basename in spec.forward_rules:
            problems.add(f"{field}.basename", f"must be unique, is {shown(rule.basename)} again")
        if not _is_server(rule.addr):
            problems.add(f"{field}.addr", f"must be an address, or address:port, is {shown(rule.addr)}")
        spec.forward_rules[rule.basename] = rule.addr
    if dns.hostname:
        host_name(dns.hostname, "dns.hostname", problems)
        spec.hostname = dns.hostname
    if dns.hostname_fqdn:
        host_name(dns.hostname_fqdn, "dns.hostname_fqdn", problems)
        spec.hostname_fqdn = dns.hostname_fqdn
    return spec


def _is_server(text: str) -> bool:
    """An address with or without a port; an IPv6 address with a port stands in brackets."""
    if is_ip(text):
        return True
    host, _, number = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return False
    return is_ip(host) and number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535


PART = Part("dns", owns=("dns",), converters={1: convert})
