"""What the public API consists of: the one list that REST, OpenAPI and the rights of tokens are made from."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from skerry.machines.v1 import (
    cells_pb2,
    graphql_pb2,
    machines_pb2,
    organizations_pb2,
    platform_pb2,
    releases_pb2,
    secrets_pb2,
    volumes_pb2,
)

PUBLIC_SERVICES: tuple[ServiceDescriptor, ...] = (
    machines_pb2.DESCRIPTOR.services_by_name["Machines"],
    volumes_pb2.DESCRIPTOR.services_by_name["Volumes"],
    secrets_pb2.DESCRIPTOR.services_by_name["Secrets"],
    platform_pb2.DESCRIPTOR.services_by_name["Platform"],
    releases_pb2.DESCRIPTOR.services_by_name["Releases"],
    organizations_pb2.DESCRIPTOR.services_by_name["Organizations"],
    graphql_pb2.DESCRIPTOR.services_by_name["GraphQL"],
    cells_pb2.DESCRIPTOR.services_by_name["Cells"],
)
"""The gRPC services of the public door, besides health and reflection."""


def public_methods() -> Iterator[MethodDescriptor]:
    """Every method of the public API."""
    for service in PUBLIC_SERVICES:
        yield from service.methods


def path_of(method: MethodDescriptor) -> str:
    """The full name of a method, as calls carry it: "/skerry.machines.v1.Machines/GetMachine"."""
    return f"/{method.containing_service.full_name}/{method.name}"
