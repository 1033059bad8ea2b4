from __future__ import annotations

from typing import Any

import pytest

from services.config_converter.parts.dns import PART
from tests.unit.config_converter.judging import accept, refuse


def test_a_machine_is_in_the_dns_unless_it_is_left_out() -> None:
    assert accept(PART, {}).register
    assert accept(PART, {"dns": {}}).register
    assert not accept(PART, {"dns": {"skip_registration": True}}).register


def test_what_is_said_about_names_is_kept() -> None:
    dns = {
        "nameservers": ["fdaa::3", "10.0.0.1"],
        "searches": ["internal", "_tcp.example.com."],
        "options": [{"name": "ndots", "value": "1"}, {"name": "rotate"}],
        "dns_forward_rules": [
            {"basename": "corp.example", "addr": "10.0.0.2:5353"},
            {"basename": ".", "addr": "[fdaa::3]:53"},
            {"basename": "v6.example", "addr": "fdaa::3"},
        ],
        "hostname": "web-1",
        "hostname_fqdn": "web-1.example.com",
    }
    spec = accept(PART, {"dns": dns})
    assert (list(spec.nameservers), list(spec.searches)) == (dns["nameservers"], dns["searches"])
    assert [(option.name, option.value) for option in spec.options] == [("ndots", "1"), ("rotate", "")]
    assert dict(spec.forward_rules) == {
        "corp.example": "10.0.0.2:5353",
        ".": "[fdaa::3]:53",
        "v6.example": "fdaa::3",
    }
    assert (spec.hostname, spec.hostname_fqdn) == ("web-1", "web-1.example.com")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"nameservers": ["10.0.0.1", "10.0.0.256"]}, "nameservers[1]"),
        ({"nameservers": ["dns.example"]}, "nameservers[0]"),
        ({"searches": ["a..b"]}, "searches[0]"),
        ({"searches": ["a b"]}, "searches[0]"),
        ({"options": [{"value": "1"}]}, "options[0].name"),
        ({"options": [{"name": "ndots:1 rotate"}]}, "options[0].name"),
        ({"options": [{"name": "ndots", "value": "1\nnameserver 1.2.3.4"}]}, "options[0].name"),
        ({"dns_forward_rules": [{"basename": "", "addr": "1.1.1.1"}]}, "dns_forward_rules[0].basename"),
        ({"dns_forward_rules": [{"basename": "a", "addr": "one"}]}, "dns_forward_rules[0].addr"),
        ({"dns_forward_rules": [{"basename": "a", "addr": "1.1.1.1:0"}]}, "dns_forward_rules[0].addr"),
        ({"dns_forward_rules": [{"basename": "a", "addr": "1.1.1.1:65536"}]}, "dns_forward_rules[0].addr"),
        ({"dns_forward_rules": [{"basename": "a", "addr": "[::1]"}]}, "dns_forward_rules[0].addr"),
        ({"dns_forward_rules": [{"basename": "a", "addr": "1.1.1.1"}] * 2}, "dns_forward_rules[1].basename"),
        ({"hostname": "-web"}, "hostname"),
        ({"hostname": "web_1"}, "hostname"),
        ({"hostname": "w" * 64}, "hostname"),
        ({"hostname": "."}, "hostname"),
        ({"hostname_fqdn": "a..b"}, "hostname_fqdn"),
        ({"hostname_fqdn": ".".join(["a" * 63] * 4)}, "hostname_fqdn"),
    ],
)
def test_what_is_no_name_or_address_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    assert list(refuse(PART, {"dns": fields})) == [f"dns.{field}"]
