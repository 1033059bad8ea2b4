"""The channel that stubs stand on: it carries the token, sets deadlines, repeats reads, and raises typed errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from services.runtime.channels import service_config, target_of
from services.runtime.errors import from_rpc_error

GATEWAY = "the gateway"
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 8 << 20),
)


def open_channel(
    addresses: Sequence[str],
    service: str,
    *,
    token: Callable[[], str],
    timeout: float,
    credentials: grpc.ChannelCredentials | None,
) -> grpc.aio.Channel:
    """A channel for the stub of one service ("package.Service"), round robin over `addresses` (host:port).

    `token` is asked at every call; `timeout`, in seconds, is that of calls that set none. Reads are repeated within a
    budget while no gateway is reached. Raises ValueError for addresses that do not go together.
    """
    options = (*_OPTIONS, ("grpc.service_config", json.dumps(service_config(service))))
    around = _Around(token, timeout)
    interceptors: list[Any] = [_Unary(around), _Stream(around)]
    target = target_of(addresses)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)


class _Around:
    """What a call gets that its caller did not set."""

    def __init__(self, token: Callable[[], str], timeout: float) -> None:
        self._token = token
        self._timeout = timeout

    def details(self, details: grpc.aio.ClientCallDetails, *, has_deadline: bool) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {self._token()}"))
        timeout = self._timeout if details.timeout is None and has_deadline else details.timeout
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg, unused-ignore]
    def __init__(self, around: _Around) -> None:
        self._around = around

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(self._around.details(client_call_details, has_deadline=True), request)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, GATEWAY, _method_of(client_call_details)) from error
        return call


class _Stream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg, unused-ignore]
    def __init__(self, around: _Around) -> None:
        self._around = around

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(self._around.details(client_call_details, has_deadline=False), request)
        return _responses(call, _method_of(client_call_details))


async def _responses(call: Any, method: str) -> AsyncIterator[Any]:
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, GATEWAY, method) from error
    finally:
        call.cancel()


def _method_of(details: grpc.aio.ClientCallDetails) -> str:
    method = details.method
    return method.decode() if isinstance(method, bytes) else str(method)
