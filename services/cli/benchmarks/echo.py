"""The floor of a call: a bare grpc.aio server that answers CreateMachine with what it was given at its start.

python -m services.cli.benchmarks.echo < ANSWER     prints its port, serves until its stdin's writer is gone
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop
from skerry.machines.v1 import machines_pb2


async def serve(answer: machines_pb2.CreateMachineResponse) -> None:
    """Listen on a free port, print it, and answer until SIGTERM."""

    async def create_machine(*_: object) -> machines_pb2.CreateMachineResponse:
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        create_machine,
        request_deserializer=machines_pb2.CreateMachineRequest.FromString,
        response_serializer=machines_pb2.CreateMachineResponse.SerializeToString,
    )
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_registered_method_handlers("skerry.machines.v1.Machines", {"CreateMachine": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Read the answer from stdin and serve it."""
    answer = machines_pb2.CreateMachineResponse.FromString(sys.stdin.buffer.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(answer))


if __name__ == "__main__":
    main()
