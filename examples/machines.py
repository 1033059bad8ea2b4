"""Create a machine, follow it until it runs, change it under a lease, and take it away again.

python examples/machines.py ~/mesh/endpoints.json      # of a running `skerry up --dir ~/mesh`
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from skerry.types.v1.machine_pb2 import MachineState

from skerry_client import MachineConfig, Skerry
from skerry_client.errors import NameTaken, NoCapacity


async def main(known: dict[str, Any]) -> None:
    region, doors = next(iter(known["regions"].items()))
    config = MachineConfig(image="docker.io/library/busybox:1")
    config.init.exec.extend(["/bin/sleep", "3600"])

    async with Skerry(doors["grpc"], token=known["token"], region=region) as skerry:
        try:
            app = await skerry.create_app("example")
        except NameTaken:
            app = skerry.app("example")

        plan = await app.dry_run(config)
        print(
            "it would go to", plan.placement.candidates[0].worker_id if plan.placement.fits else plan.placement.reason
        )
        try:
            machine = await app.create(config)
        except NoCapacity as full:
            sys.exit(f"no room: {full.message}")

        watch = app.watch()
        async for told in watch:
            if told.machine.id == machine.id:
                print("it is", MachineState.Name(told.machine.state))
            if told.caught_up:
                break
        await watch.aclose()
        await app.wait(machine.id, "started")

        async with app.lease(machine.id, ttl=60, description="example") as lease:
            config.env["COLOUR"] = "blue"
            updated = await lease.update(config, current_version=machine.instance_id)
            print("version", updated.instance_id)
            await app.wait(machine.id, "settled")

        await app.destroy(machine.id, force=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
