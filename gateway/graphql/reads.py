"""What clients read by GraphQL, from the catalog and the store of the region, and from other regions what is theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import strawberry
from skerry.machines.v1 import graphql_pb2
from skerry.machines.v1 import machines_pb2 as machines_api
from skerry.store.v1 import catalog_store_pb2, volume_store_pb2
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.catalog_pb2 import OrganizationRecord
from skerry.store.v1.release_pb2 import ReleaseRecord
from skerry.types.v1.config_pb2 import MachineConfig
from strawberry.scalars import JSON

from gateway.apps import DEPLOYED
from gateway.auth import current_principal
from gateway.graphql.sources import Sources
from gateway.lifecycle import get_machine, list_machines
from gateway.names import is_app_name, is_machine_id
from gateway.releases import is_in_progress, is_stable, status_of
from gateway.rest.writing import encode_timestamp, encoder_of
from gateway.routing import CALL_SECONDS, LIST_SECONDS, Peer
from gateway.waits import STATE_NAMES
from services.runtime import graphql_types as shared
from services.runtime.addresses import APPS_DOMAIN
from services.runtime.errors import DependencyDown, InvalidConfig, NotFound, SkerryError
from services.runtime.ids import cell_of
from services.runtime.principals import email_of
from services.runtime.telemetry import log

MIB = 1 << 20
MOST_SHOWN = 5000
"""Machines that one operation may come to, each time that it asks for them."""

encode_config = encoder_of(MachineConfig.DESCRIPTOR)

_RELEASES_ELSEWHERE = """
query($app: String!, $first: Int!) { app(name: $app) { releasesUnprocessed(first: $first) { nodes {
  id version description reason status imageRef stable inProgress deploymentStrategy user { email } createdAt
  configDefinition
} } } }
"""
_MACHINE_ELSEWHERE = """
query($id: String!) { machine(machineId: $id) {
  name state region instanceId config createdAt updatedAt host { id } ips { nodes { ip } } app { name }
} }
"""
_VOLUME_ELSEWHERE = "query($id: ID!) { volume(id: $id) { ... on Volume { name state region app { name } } } }"


class RegionReads:
    """The reads of one operation: what several of its fields need is asked for once."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.unreachable: dict[str, None] = {}
        """Codes of the regions that did not answer, in the order in which that was found out."""
        self._around = sources.around
        self._catalog = sources.catalog
        self._shown = 0
        self._statuses: dict[str, str] = {}
        self._machines: dict[str, Sequence[shared.Machine]] = {}
        self._releases: dict[tuple[str, int], Sequence[shared.ReleaseUnprocessed]] = {}

    async def organizations(self) -> Sequence[shared.Organization]:
        return [_organization(record) for record in self._catalog.reached_organizations()]

    async def organization(self, slug_or_id: str) -> shared.Organization:
        return _organization(self._organization_record(slug_or_id))

    async def organization_of(self, app: shared.App) -> shared.Organization:
        slug = app.record.organization_slug
        try:
            return await self.organization(slug)
        except NotFound:
            # The catalog has the app before its organization.
            return _organization(OrganizationRecord(id=slug, slug=slug, name=slug))

    async def limits_of(self, organization: shared.Organization) -> shared.Limits:
        limits = self._organization_record(organization.slug).limits
        return shared.Limits(
            cpus=limits.max_cpus if limits.HasField("max_cpus") else None,
            memory_mb=limits.max_memory_bytes // MIB if limits.HasField("max_memory_bytes") else None,
            gpus=limits.max_gpus if limits.HasField("max_gpus") else None,
            machines=limits.max_machines if limits.HasField("max_machines") else None,
        )

    async def app(self, name_or_id: str) -> shared.App:
        known = self._catalog.app_of_id(name_or_id)
        name = known.name if known is not None else name_or_id
        if not is_app_name(name):
            raise NotFound(shared.NO_APP)
        try:
            return self._app(await self._around.apps.resolve(name))
        except NotFound:
            raise NotFound(shared.NO_APP) from None

    async def app_of(self, owned: shared.Machine | shared.Volume) -> shared.App:
        return await self.app(owned.record)

    async def status_of(self, app: shared.App) -> str:
        """As the region has it; an app whose machines are all elsewhere is deployed too."""
        if app.name not in self._statuses:
            status = (await self._around.apps.get(app.name)).status
            if status != DEPLOYED and await self.machines_of(app):
                status = DEPLOYED
            self._statuses[app.name] = status
        return self._statuses[app.name]

    async def machine(self, machine_id: str) -> shared.Machine:
        if not is_machine_id(machine_id):
            raise NotFound(shared.NO_MACHINE)
        try:
            if (peer := self._around.routing.by_machine(machine_id)) is not None:
                found = await self._elsewhere(peer, _MACHINE_ELSEWHERE, {"id": machine_id}, "machine")
                addresses = [each["ip"] for each in found["ips"]["nodes"]]
                return shared.Machine(
                    record=found["app"]["name"],
                    address=addresses[0] if addresses else "",
                    id=strawberry.ID(machine_id),
                    name=found["name"],
                    state=found["state"],
                    region=found["region"],
                    instance_id=found["instanceId"],
                    config=JSON(found["config"]),
                    created_at=found["createdAt"],
                    updated_at=found["updatedAt"],
                    host=shared.Host(id=found["host"]["id"]),
                )
            request = store.GetMachineRequest(machine_id=machine_id)
            record = (await self._around.retries(lambda: self._around.store.GetMachine(request))).machine
            await self.app(record.app_name)
            got = machines_api.GetMachineRequest(app_name=record.app_name, machine_id=machine_id)
            return _machine(await get_machine(self._around, got), record.app_name)
        except NotFound:
            raise NotFound(shared.NO_MACHINE) from None

    async def machines_of(self, app: shared.App) -> Sequence[shared.Machine]:
        if app.name not in self._machines:
            request = machines_api.ListMachinesRequest(app_name=app.name, limit=shared.MOST_MACHINES)
            listed = await list_machines(self._around, request)
            self.unreachable |= dict.fromkeys(listed.unreachable)
            self._machines[app.name] = [_machine(each, app.name) for each in listed.machines]
        found = self._machines[app.name]
        self._shown += len(found)
        if self._shown > MOST_SHOWN:
            raise InvalidConfig(f"an operation must not ask for machines that come to more than {MOST_SHOWN}")
        return found

    async def regions_of(self, app: shared.App) -> Sequence[shared.Region]:
        codes = {machine.region for machine in await self.machines_of(app)}
        found = [region for region in self.regions() if region.code in codes]
        return found or [shared.Region.of(self._around.regions.region_of_cell(app.home_cell or self._around.cell))]

    async def volume(self, volume_id: str) -> shared.Volume:
        try:
            cell = cell_of(volume_id)
            if cell is None:
                raise NotFound(shared.NO_VOLUME)
            if (peer := self._around.routing.by_cell(cell)) is not None:
                found = await self._elsewhere(peer, _VOLUME_ELSEWHERE, {"id": volume_id}, "volume")
                return shared.Volume(
                    record=found["app"]["name"],
                    id=strawberry.ID(volume_id),
                    name=found["name"],
                    state=found["state"],
                    region=found["region"],
                )
            request = volume_store_pb2.GetVolumeRequest(volume_id=volume_id)
            record = (await self._around.retries(lambda: self.sources.volume_store.GetVolume(request))).volume
            await self.app(record.app_name)
        except NotFound:
            raise NotFound(shared.NO_VOLUME) from None
        state = volume_store_pb2.VolumeState.Name(record.state).removeprefix("VOLUME_STATE_").lower()
        return shared.Volume(
            record=record.app_name, id=strawberry.ID(record.id), name=record.name, state=state, region=record.region
        )

    async def releases_of(self, app: shared.App, first: int) -> Sequence[shared.ReleaseUnprocessed]:
        """Those that the app's home cell has taken; none, and its region is named, when it does not answer."""
        key = app.name, first
        if key not in self._releases:
            peer = self.sources.releases.home_of(app.record)
            if peer is None:
                records = await self.sources.releases.records(app.record, first)
                self._releases[key] = [_release(record) for record in records]
            else:
                self._releases[key] = await self._releases_elsewhere(peer, app, first)
        return self._releases[key]

    async def secrets_of(self, app: shared.App) -> shared.Secrets:
        request = catalog_store_pb2.GetSecretsRequest(app_id=app.id)
        found = (await self._around.retries(lambda: self.sources.catalog_store.GetSecrets(request))).secrets
        secrets = [
            shared.Secret(
                id=strawberry.ID(each.name),
                name=each.name,
                digest=each.digest,
                version=each.version,
                created_at=encode_timestamp(each.created_at),
                updated_at=encode_timestamp(each.updated_at),
            )
            for each in found.secrets
        ]
        return shared.Secrets(found.version, secrets)

    async def image(self, reference: str) -> shared.Image | None:
        alias = self._catalog.image(reference)
        if alias is None:
            same = (each for each in self._catalog.images() if reference in (each.digest, each.reference) and reference)
            alias = next(same, None)
        if alias is None:
            return None
        return shared.Image(id=strawberry.ID(alias.alias), digest=alias.digest, ref=alias.reference)

    async def newest_image(self, reference: str) -> shared.ImageVersion | None:
        exact = await self.image(reference)
        alias = self._catalog.image(exact.id) if exact is not None else None
        if alias is None:
            repository = shared.repository_of(reference)
            same = (each for each in self._catalog.images() if shared.repository_of(each.reference) == repository)
            alias = max(same, key=self._catalog.images().index, default=None)
        if alias is None:
            return None
        return shared.ImageVersion.of(alias.alias, shared.repository_of(alias.reference), alias.digest)

    def regions(self) -> Sequence[shared.Region]:
        return [shared.Region.of(region) for region in self._around.regions.regions]

    def nearest_region(self) -> shared.Region:
        return shared.Region.of(self._around.regions.region(self._around.region))

    def viewer(self) -> shared.User | shared.Macaroon:
        return shared.User.of(email_of(current_principal.get()))

    async def create_app(self, request: machines_api.CreateAppRequest, region: str) -> None:
        """Create an app at home in `region`; in this one where it is empty. Raises as `Apps.create`."""
        if region:
            self._around.regions.region(region)
        if (peer := self._around.routing.by_region(region)) is not None:
            await peer.call("CreateApp", request)
        else:
            await self._around.apps.create(request)

    def _app(self, record: store.AppRecord) -> shared.App:
        hostname = f"{record.name}.{APPS_DOMAIN}"
        return shared.App(
            record=record,
            id=strawberry.ID(record.id),
            internal_numeric_id=record.internal_numeric_id,
            name=record.name,
            hostname=hostname,
            cname_target=hostname,
            app_url=f"https://{hostname}",
            network=record.network,
            home_cell=record.home_cell,
            created_at=encode_timestamp(record.created_at),
            role=shared.AppRole(name=record.app_role, id=strawberry.ID(record.app_role)),
        )

    def _organization_record(self, slug_or_id: str) -> OrganizationRecord:
        for record in self._catalog.reached_organizations():
            if slug_or_id in (record.slug, record.id):
                return record
        raise NotFound(shared.NO_ORGANIZATION)

    async def _releases_elsewhere(self, peer: Peer, app: shared.App, first: int) -> Sequence[shared.ReleaseUnprocessed]:
        try:
            found = await self._elsewhere(
                peer, _RELEASES_ELSEWHERE, {"app": app.name, "first": first}, "app", LIST_SECONDS
            )
        except DependencyDown as error:
            log.warning("region_unreachable", asked=peer.region, reason=error.reason, why=error.message)
            self.unreachable[peer.region] = None
            return ()
        return [
            shared.ReleaseUnprocessed(
                id=node["id"],
                version=node["version"],
                description=node["description"],
                reason=node["reason"],
                status=node["status"],
                image_ref=node["imageRef"],
                stable=node["stable"],
                in_progress=node["inProgress"],
                deployment_strategy=node["deploymentStrategy"],
                user=shared.User.of(node["user"]["email"]) if node["user"] else None,
                created_at=node["createdAt"],
                config_definition=node["configDefinition"],
            )
            for node in found["releasesUnprocessed"]["nodes"]
        ]

    async def _elsewhere(
        self, peer: Peer, query: str, variables: Mapping[str, Any], name: str, seconds: float = CALL_SECONDS
    ) -> Any:
        """The field `name` that a gateway of another cell answers. Raises NotFound, DependencyDown, what it refuses."""
        request = graphql_pb2.ExecuteRequest(document=orjson.dumps({"query": query, "variables": variables}))
        answer = json.loads((await peer.call("Execute", request, seconds, service="GraphQL")).document)
        if errors := answer.get("errors"):
            raise _refused_there(peer, errors[0])
        return answer["data"][name]


def _refused_there(peer: Peer, error: Mapping[str, Any]) -> SkerryError:
    if error.get("extensions", {}).get("code") == "NOT_FOUND":
        return NotFound(str(error.get("message", "")))
    return DependencyDown(
        f"region {peer.region} does not answer that: {error.get('message', '')}",
        metadata={"dependency": f"{peer.region}/gateway", "region": peer.region},
        retry_after=1.0,
    )


def _organization(record: OrganizationRecord) -> shared.Organization:
    return shared.Organization(
        id=strawberry.ID(record.id),
        slug=record.slug,
        raw_slug=record.slug,
        name=record.name,
        type=record.type,
        paid_plan=record.paid_plan,
        billable=True,
        internal_numeric_id=str(record.internal_numeric_id),
    )


def _machine(machine: machines_api.Machine, app_name: str) -> shared.Machine:
    config = json.loads(orjson.dumps(encode_config(machine.config)))
    return shared.Machine(
        record=app_name,
        address=machine.private_ip,
        id=strawberry.ID(machine.id),
        name=machine.name,
        state=STATE_NAMES.get(machine.state, ""),
        region=machine.region,
        instance_id=machine.instance_id,
        config=JSON(config),
        created_at=encode_timestamp(machine.created_at),
        updated_at=encode_timestamp(machine.updated_at),
        host=shared.Host(id=strawberry.ID(_host_of(machine))),
    )


def _host_of(machine: machines_api.Machine) -> str:
    """What tells the hosts of machines apart: the groups of their addresses that are the worker's."""
    groups = machine.private_ip.split(":")
    return "".join(groups[3:5]) if len(groups) == 8 else ""


def _release(record: ReleaseRecord) -> shared.ReleaseUnprocessed:
    definition = JSON(json.loads(record.definition_json)) if record.definition_json else None
    return shared.ReleaseUnprocessed(
        id=strawberry.ID(record.id),
        version=record.version,
        description="",
        reason="",
        status=status_of(record),
        image_ref=record.image_ref or None,
        stable=is_stable(record),
        in_progress=is_in_progress(record),
        deployment_strategy=record.strategy,
        user=shared.User.of(record.user) if record.user else None,
        created_at=encode_timestamp(record.created_at),
        config_definition=definition,
    )
