"""A gRPC server of registries: with health, reflection, keepalive, and a drain before it stops."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.local_channel import MAX_MESSAGE_BYTES
from services.runtime.registry import Registry

_OPTIONS: tuple[tuple[str, int], ...] = (
    # Two processes never share a port: an old one that still runs keeps the new one out.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # Beyond some requests that it has not handed over yet, gRPC breaks calls off at random, without saying why. Turning
    # calls away in time, with a reason, is the business of the services.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
)


class Server:
    """Serves registries on one address. NOT_SERVING until `set_serving`."""

    def __init__(
        self,
        registry: Registry | Sequence[Registry],
        address: str,
        *,
        options: Sequence[tuple[str, int | str]] = (),
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """`address` is "host:port" (port 0: any free one) or "unix:/path". Without `credentials` it is in the clear."""
        self._registries = (registry,) if isinstance(registry, Registry) else tuple(registry)
        self._address = address
        self._options = (*_OPTIONS, *options)
        self._credentials = credentials
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises OSError when the address cannot be had."""
        server = grpc.aio.server(options=self._options)
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        for registry in self._registries:
            for service, handlers in registry.services.items():
                server.add_registered_method_handlers(service, handlers)
                # Methods that the service does not have are answered by the generic handler.
                server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
                names.append(service)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(names, server)
        await self.set_serving(False)
        try:
            if self._credentials is None:
                self.port = server.add_insecure_port(self._address)
            else:
                self.port = server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}; is another process there?") from error
        await server.start()
        self._server = server
        return self.port

    async def set_serving(self, serving: bool, service: str = "") -> None:
        """Set what health says of `service`, a component's name ("" is the whole server)."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, status)

    async def stop(self, grace: float) -> None:
        """Drain: say NOT_SERVING, refuse new calls, give running ones `grace` seconds, then end them."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace)
