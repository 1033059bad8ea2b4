from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from skerry.store.v1.store_pb2 import AppRecord

from services.runtime.addresses import network_of, private_ip


def test_an_address_is_eight_written_out_groups_that_name_network_worker_and_machine() -> None:
    address = private_ip("net", "001", 7, "00112233445566")
    groups = address.split(":")
    assert len(groups) == 8
    assert all(len(group) == 4 for group in groups)
    assert IPv6Address(address)
    assert groups[0] == "fdaa"
    assert groups[3:5] == ["0010", "0007"]
    assert groups[5:] == ["1122", "3344", "5566"]


def test_addresses_differ_by_network_cell_worker_and_machine() -> None:
    seen = {
        private_ip(network, cell, worker, machine)
        for network in ("", "a")
        for cell in ("001", "fff")
        for worker in (0, 1, (1 << 20) - 1)
        for machine in ("00100000000000", "0010000000000f")
    }
    assert len(seen) == 24


def test_the_network_is_the_same_prefix_in_every_cell() -> None:
    one, other = (private_ip("a", cell, 1, "00100000000000")[:14] for cell in ("001", "002"))
    assert one == other


@pytest.mark.parametrize(("cell", "number", "machine"), [("xyz", 1, "00"), ("001", 1 << 20, "00"), ("001", 1, "no")])
def test_what_is_no_cell_number_or_machine_is_refused(cell: str, number: int, machine: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|does not fit"):
        private_ip("a", cell, number, machine)


def test_two_organizations_that_call_their_networks_the_same_have_two() -> None:
    apps = [AppRecord(name=slug, organization_slug=slug, network="default") for slug in ("acme", "personal")]
    prefixes = {private_ip(network_of(app), "001", 1, "00100000000000")[:14] for app in apps}
    assert len(prefixes) == 2
