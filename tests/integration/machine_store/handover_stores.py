"""The plan's and the catalog's side of a machine-store, as tests ask it."""

from __future__ import annotations

from skerry.store.v1 import catalog_store_pb2_grpc, plan_store_pb2_grpc

from services.runtime.channels import local
from services.runtime.registry import Registry
from tests.integration.machine_store.stores import Store


class Sides:
    """Stubs of the services beside the MachineStore."""

    def __init__(self, store: Store) -> None:
        registry = Registry(service="machine-store", secret="s")
        store.service.register(registry)
        channel = local(registry, caller="001/tests", callee="machine-store", secret="s", default_timeout=30)
        self.plan: plan_store_pb2_grpc.PlanStoreAsyncStub = plan_store_pb2_grpc.PlanStoreStub(channel)
        self.catalog: catalog_store_pb2_grpc.CatalogStoreAsyncStub = catalog_store_pb2_grpc.CatalogStoreStub(channel)
