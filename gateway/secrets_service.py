"""Secrets on the wire."""

from __future__ import annotations

from skerry.machines.v1 import secrets_pb2 as api
from skerry.machines.v1.secrets_pb2_grpc import SecretsServicer

from gateway.secrets import Secrets


class SecretsService(SecretsServicer):
    """skerry.machines.v1.Secrets. Every region has all secrets of its apps: nothing is forwarded."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def ListSecrets(self, request: api.ListSecretsRequest, context: object) -> api.ListSecretsResponse:
        return await self._secrets.list(request)

    async def UpdateSecrets(self, request: api.UpdateSecretsRequest, context: object) -> api.UpdateSecretsResponse:
        return await self._secrets.update(request)

    async def GetSecret(self, request: api.GetSecretRequest, context: object) -> api.GetSecretResponse:
        return api.GetSecretResponse(secret=await self._secrets.get(request))

    async def SetSecret(self, request: api.SetSecretRequest, context: object) -> api.SetSecretResponse:
        return await self._secrets.set(request)

    async def DeleteSecret(self, request: api.DeleteSecretRequest, context: object) -> api.DeleteSecretResponse:
        return api.DeleteSecretResponse(version=await self._secrets.delete(request))
