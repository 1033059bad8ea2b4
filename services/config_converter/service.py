"""The config-converter as a service: messages in, the conversion, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from skerry.converter.v1.converter_pb2 import ConvertRequest, ConvertResponse
from skerry.converter.v1.converter_pb2_grpc import ConfigConverterServicer, add_ConfigConverterServicer_to_server

from services.config_converter.conversion import DEFAULT_PREFIX, Context, convert
from services.config_converter.part import NO_FACTS
from services.runtime.registry import Registry


class ConfigConverterService(ConfigConverterServicer):
    """Serves skerry.converter.v1.ConfigConverter. Stateless, and it calls nobody."""

    name = "config-converter"

    def register(self, registry: Registry) -> None:
        """Add the servicer to `registry`."""
        add_ConfigConverterServicer_to_server(self, registry)

    async def run(self, ready: Callable[[], None]) -> None:
        """Nothing has to catch up, and nothing works in the background."""
        ready()
        await asyncio.get_running_loop().create_future()

    async def Convert(
        self, request: ConvertRequest, context: grpc.aio.ServicerContext[ConvertRequest, ConvertResponse]
    ) -> ConvertResponse:
        """Convert a whole configuration. Raises InvalidConfig."""
        whose = Context(request.app_name, request.region, request.field_prefix or DEFAULT_PREFIX)
        return ConvertResponse(result=convert(request.config, whose, NO_FACTS))
