"""A client of the Skerry machines API for Python: typed stubs, and what every caller needs around them.

    async with Skerry("127.0.0.1:7002", token=token, region="syd") as skerry:
        app = skerry.app("hello")
        machine = await app.create(MachineConfig(image="docker.io/library/nginx:latest"), name="web-1")
        await app.wait(machine.id, "started")

Errors are the exceptions of `skerry_client.errors`; their `reason` is the `status` that REST answers.
"""

from __future__ import annotations

from skerry.machines.v1.machines_pb2 import Machine, WatchMachinesResponse
from skerry.types.v1.config_pb2 import MachineConfig

from skerry_client.client import App, Lease, Skerry

__all__ = ["App", "Lease", "Machine", "MachineConfig", "Skerry", "WatchMachinesResponse"]
