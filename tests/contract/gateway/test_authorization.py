"""Who may do what: every method with every kind of token, on apps that it reaches and on apps that it does not."""

from __future__ import annotations

import base64
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor as FIELD
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from skerry.store.v1 import catalog_store_pb2 as catalog
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.catalog_pb2 import OrganizationRecord, TokenKeyRecord
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub

from gateway.public_services import path_of, public_methods
from services.runtime.channels import connect, local
from services.runtime.errors import Forbidden, NotFound, SkerryError, Unauthenticated
from services.runtime.tokens import attenuate, mint, public_key_of
from tests.support import eventually
from tests.support_gateway import TOKEN, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY, OLDER_KEY, STRANGE_KEY = (secrets.token_bytes(32) for _ in range(3))
OURS, THEIRS = "acme", "rival"

READS = {
    "ListApps", "GetApp", "ListMachines", "WatchMachines", "GetMachine", "WaitMachine", "ListMachineEvents",
    "GetMachineLease", "GetMachineMetadata", "GetMachineMetadataEntry", "ListMachineVersions", "ListVolumes",
    "GetVolume", "ListSnapshots", "ListSecrets", "GetSecret", "ListRegions", "SimulatePlacements", "ListIPAssignments",
    "ListReleases", "GetCurrentRelease", "GetOrganization", "Execute", "LocateApp",
}  # fmt: skip
CHANGES = {
    "CreateMachine", "UpdateMachine", "DeleteMachine", "StartMachine", "StopMachine", "RestartMachine", "SignalMachine",
    "SuspendMachine", "CordonMachine", "UncordonMachine", "AcquireMachineLease", "ReleaseMachineLease",
    "SetMachineMetadata", "DeleteMachineMetadata", "CreateVolume", "UpdateVolume", "DeleteVolume", "ExtendVolume",
    "CreateSnapshot", "UpdateSecrets", "SetSecret", "DeleteSecret", "CreateRelease", "UpdateRelease",
}  # fmt: skip
LOOKS_INSIDE = {"ExecMachine", "ListProcesses"}
MANAGES_APPS = {"CreateApp", "DeleteApp"}

ALL = READS | CHANGES | LOOKS_INSIDE | MANAGES_APPS
DEPLOY = READS | CHANGES
EXEC = READS | LOOKS_INSIDE
WITHOUT_APP = {
    "ListRegions",
    "SimulatePlacements",
    "GetOrganization",
    "Execute",
    "ListApps",
    "CreateApp",
    "UpdateRelease",
}
"""Methods whose requests name no app that must be there."""

UNKNOWN, EXPIRED, REVOKED = "not valid here", "expired", "revoked"
REACHED, SIBLING, FOREIGN, MISSING = "reached", "sibling", "foreign", "missing"
"""An app that tokens are for; another one of its organization; another organization's; none."""


@dataclass(frozen=True)
class Kind:
    """A token, which methods it may call on which apps, or why it is refused."""

    token: str
    methods: frozenset[str] = frozenset()
    apps: frozenset[str] = frozenset()
    refused: str = ""


@dataclass(frozen=True)
class World:
    """A region with two organizations and three apps."""

    region: TestRegion
    channel: grpc.aio.Channel
    catalog: Any
    apps: Mapping[str, str]
    kinds: Mapping[str, Kind]

    async def outcome(self, method: MethodDescriptor, request: Any, token: str) -> SkerryError | None:
        """What a call of the public API ends with; None for success."""
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call: Any = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        stub = call(
            path_of(method),
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            if not method.server_streaming:
                await stub(request, timeout=10, metadata=metadata)
                return None
            async for _ in stub(request, timeout=10, metadata=metadata):
                return None
        except SkerryError as error:
            return error
        return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(region: TestRegion) -> AsyncIterator[World]:
    channel = local(region.registries["machine-store"], caller="syd-1/cli", callee="machine-store", secret="of-the-set")
    stub: Any = CatalogStoreStub(channel)
    keys = {7: KEY, 6: OLDER_KEY}
    records = [
        *(
            catalog.CatalogRecord(organization=OrganizationRecord(id=slug, slug=slug, name=slug))
            for slug in (OURS, THEIRS)
        ),
        *(
            catalog.CatalogRecord(token_key=TokenKeyRecord(id=str(number), public_key=public_key_of(key)))
            for number, key in keys.items()
        ),
    ]
    await stub.PutCatalogRecords(catalog.PutCatalogRecordsRequest(records=records))
    apps = {REACHED: "shop", SIBLING: "blog", FOREIGN: "secret-plans", MISSING: "nothing-at-all"}
    kinds = make_kinds()

    async def has_organizations() -> bool:
        listed = [await region.call("GET", f"/v1/apps?org_slug={slug}") for slug in (OURS, THEIRS)]
        return all(answer.status == 200 for answer in listed)

    await eventually(has_organizations)
    for where in (REACHED, SIBLING, FOREIGN):
        await make_app(region, apps[where], THEIRS if where == FOREIGN else OURS)
    for kind in kinds.values():
        if kind.refused == REVOKED:
            await stub.RecordRevocation(catalog.RecordRevocationRequest(id=REVOKED_ID[0]))

    async def known() -> bool:
        listed = [await region.call("GET", "/v1/apps", token=kind.token) for kind in kinds.values()]
        return [answer.status == 401 for answer in listed] == [bool(kind.refused) for kind in kinds.values()]

    await eventually(known)
    async with connect([region.grpc_address], caller="syd-1/cli", callee="gateway", secret=None) as public:
        yield World(region, public, stub, apps, kinds)


async def make_app(region: TestRegion, name: str, organization: str) -> None:
    made = await region.call("POST", "/v1/apps", {"name": name, "org_slug": organization})
    assert made.status in (201, 422), made


REVOKED_ID: list[str] = []


def make_kinds() -> dict[str, Kind]:
    """Every kind of token there is."""
    past, future = time.time() - 60, time.time() + 3600

    def ours(**more: Any) -> str:
        return mint(KEY, 7, organization=OURS, **more).token

    organization = frozenset({REACHED, SIBLING})
    app, nothing = frozenset({REACHED}), frozenset[str]()
    revoked = mint(KEY, 7, organization=OURS)
    REVOKED_ID[:] = [revoked.id]
    kinds = {
        "no token": Kind("", refused="a token is needed"),
        "nonsense": Kind("nonsense", refused=UNKNOWN),
        "development": Kind(TOKEN, frozenset(ALL), frozenset({REACHED, SIBLING, FOREIGN})),
        "other organization's": Kind(mint(KEY, 7, organization=THEIRS).token, frozenset(ALL), frozenset({FOREIGN})),
        "other organization's, of an app with our app's name": Kind(
            mint(KEY, 7, organization=THEIRS, app="shop").token, frozenset(ALL), nothing
        ),
        "of an older key": Kind(mint(OLDER_KEY, 6, organization=OURS).token, frozenset(ALL), organization),
        "of a strange key": Kind(mint(STRANGE_KEY, 7, organization=OURS).token, refused=UNKNOWN),
        "of a key that nobody knows": Kind(mint(STRANGE_KEY, 99, organization=OURS).token, refused=UNKNOWN),
        "expired": Kind(ours(expires_at=past), refused=EXPIRED),
        "expired by its holder": Kind(attenuate(ours(), expires_at=past).token, refused=EXPIRED),
        "expired, and prolonged by its holder": Kind(
            attenuate(ours(expires_at=past), expires_at=future).token, refused=EXPIRED
        ),
        "revoked": Kind(revoked.token, refused=REVOKED),
        "made from a revoked one": Kind(attenuate(revoked.token, scope="read-only").token, refused=REVOKED),
        "narrowed to an app": Kind(attenuate(ours(), app="shop").token, frozenset(ALL), app),
        "narrowed to reading": Kind(attenuate(ours(), scope="read-only").token, frozenset(READS), organization),
        "deploying, narrowed to exec": Kind(
            attenuate(ours(scope="deploy"), scope="exec").token, frozenset(READS), organization
        ),
        "reading, widened by its holder": Kind(
            attenuate(ours(scope="read-only"), scope="all").token, frozenset(READS), organization
        ),
        "of an app, narrowed to another one": Kind(
            attenuate(ours(app="shop"), app="blog").token, frozenset(ALL), nothing
        ),
        "narrowed twice, and for a time": Kind(
            attenuate(attenuate(ours(expires_at=future), app="shop").token, scope="deploy", expires_at=future).token,
            frozenset(DEPLOY),
            app,
        ),
    }
    for scope, methods in (("all", ALL), ("read-only", READS), ("deploy", DEPLOY), ("exec", EXEC)):
        kinds[f"organization, {scope}"] = Kind(ours(scope=scope), frozenset(methods), organization)
        kinds[f"app, {scope}"] = Kind(ours(app="shop", scope=scope), frozenset(methods), app)
    return kinds


def request_of(method: MethodDescriptor, app: str, release: str) -> Any:
    """A request that is right in itself, about things that are not there: what is let in does no harm."""
    request: Any = GetMessageClass(method.input_type)()
    values: dict[str, Any] = {
        "app_name": app,
        "machine_id": "00100000000000",
        "volume_id": "vol_00100000000000",
        "name": "A_NAME",
        "key": "key",
        "value": "value",
        "cmd": "true",
        "signal": "SIGTERM",
        "size_gb": 1,
        "skip_launch": True,
        "image": "nginx",
        "strategy": "immediate",
        "status": "complete",
        "release_id": release,
        "document": json.dumps({"query": "{ __typename }"}).encode(),
    }
    takes: dict[int, type] = {FIELD.TYPE_STRING: str, FIELD.TYPE_BYTES: bytes, FIELD.TYPE_BOOL: bool}
    for field in method.input_type.fields:
        value = values.get(field.name)
        if value is not None and isinstance(value, takes.get(field.type, int)) and not field.is_repeated:
            setattr(request, field.name, value)
    if method.name in ("CreateMachine", "UpdateMachine"):
        request.config.image = "nginx"
        request.name = ""
    if method.name == "CreateVolume":
        request.name = "data"
    if method.name == "UpdateSecrets":
        request.values["A_NAME"].value = "value"
    return request


METHODS = {f"{method.containing_service.name}/{method.name}": method for method in public_methods()}


async def test_the_matrix_has_every_method() -> None:
    assert {method.name for method in METHODS.values()} == ALL


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.name not in WITHOUT_APP])
async def test_a_method_on_an_app_is_done_forbidden_hidden_or_refused(name: str, world: World) -> None:
    method, wrong = METHODS[name], []
    for which, kind in world.kinds.items():
        for where, app in world.apps.items():
            if method.name == "DeleteApp" and where != MISSING:
                await make_app(world.region, app, THEIRS if where == FOREIGN else OURS)
            got = await world.outcome(method, request_of(method, app, ""), kind.token)
            hidden = isinstance(got, NotFound) and got.message == f"there is no app {app!r} that this token reaches"
            if kind.refused:
                right = isinstance(got, Unauthenticated) and kind.refused in got.message
            elif where not in kind.apps:
                right = hidden
            elif method.name not in kind.methods:
                right = isinstance(got, Forbidden)
            else:
                right = not hidden and not isinstance(got, Forbidden | Unauthenticated)
            if not right:
                wrong.append(f"{which}, {where}: {got!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["Platform/ListRegions", "Platform/SimulatePlacements", "GraphQL/Execute"])
async def test_a_method_that_is_about_no_app_needs_a_token_that_may_read(name: str, world: World) -> None:
    method = METHODS[name]
    for which, kind in world.kinds.items():
        got = await world.outcome(method, request_of(method, "", ""), kind.token)
        if kind.refused:
            assert isinstance(got, Unauthenticated), which
        else:
            assert not isinstance(got, Forbidden | Unauthenticated), which


async def test_an_organization_is_seen_with_its_own_tokens_and_apps_with_those_that_reach_them(world: World) -> None:
    organization, listing = METHODS["Organizations/GetOrganization"], METHODS["Machines/ListApps"]
    for which, kind in world.kinds.items():
        for slug, apps in ((OURS, {REACHED, SIBLING}), (THEIRS, {FOREIGN}), ("nobody", set[str]())):
            sees = which == "development" or (slug == THEIRS) == which.startswith("other")
            for method, field in ((organization, "slug"), (listing, "org_slug")):
                request: Any = GetMessageClass(method.input_type)()
                setattr(request, field, slug)
                got = await world.outcome(method, request, kind.token)
                if kind.refused:
                    assert isinstance(got, Unauthenticated), which
                elif slug == "nobody" or not sees:
                    assert isinstance(got, NotFound), (which, slug, got)
                else:
                    assert got is None, (which, slug, got)
            if not kind.refused and sees and slug != "nobody":
                for query in (f"?org_slug={slug}", ""):
                    answer = await world.region.call("GET", f"/v1/apps{query}", token=kind.token)
                    names = {app["name"] for app in answer.json["apps"]} & set(world.apps.values())
                    wanted = kind.apps & apps if query else kind.apps
                    assert names == {world.apps[where] for where in wanted}, which


async def test_apps_are_created_with_a_token_of_their_organization_that_may_do_everything(world: World) -> None:
    method = METHODS["Machines/CreateApp"]
    for number, (which, kind) in enumerate(world.kinds.items()):
        for slug, where in ((OURS, SIBLING), (THEIRS, FOREIGN)):
            request: Any = GetMessageClass(method.input_type)(app_name=f"new-{number}-{slug}", org_slug=slug)
            got = await world.outcome(method, request, kind.token)
            if kind.refused:
                assert isinstance(got, Unauthenticated), which
            elif where in kind.apps and "CreateApp" in kind.methods:
                assert got is None, (which, got)
            else:
                assert isinstance(got, Forbidden | NotFound), (which, got)


async def test_graphql_shows_an_app_to_who_reaches_it(world: World) -> None:
    query = "query($name: String!) { app(name: $name) { name } }"
    for where, organization in ((REACHED, OURS), (SIBLING, OURS), (FOREIGN, THEIRS)):
        await make_app(world.region, world.apps[where], organization)
    for which, kind in world.kinds.items():
        for where, app in world.apps.items():
            body = {"query": query, "variables": {"name": app}}
            answer = await world.region.call("POST", "/graphql", body, token=kind.token or None)
            if kind.refused:
                assert app not in json.dumps(answer.json), which
            elif where in kind.apps:
                assert answer.json["data"]["app"] == {"name": app}, (which, where, answer.json)
            else:
                assert "Could not find App" in answer.json["errors"][0]["message"], (which, where, answer.json)


async def test_a_release_is_changed_by_who_reaches_its_app(world: World) -> None:
    method = METHODS["Releases/UpdateRelease"]
    releases: dict[str, str] = {}
    for where, organization in ((REACHED, OURS), (FOREIGN, THEIRS)):
        await make_app(world.region, world.apps[where], organization)
        body = {"app_name": world.apps[where], "image": "nginx", "strategy": "ROLLING"}
        taken = await world.region.call("POST", "/api/v1/releases", body)
        assert taken.status == 201, taken
        releases[where] = taken.json["release"]["id"]
    for which, kind in world.kinds.items():
        for where, release in releases.items():
            got = await world.outcome(method, request_of(method, "", release), kind.token)
            if kind.refused:
                assert isinstance(got, Unauthenticated), which
            elif "UpdateRelease" not in kind.methods:
                assert isinstance(got, Forbidden), (which, got)
            elif where not in kind.apps:
                missing = await world.outcome(method, request_of(method, "", release[:-4] + "zzzz"), kind.token)
                assert isinstance(got, NotFound), (which, got)
                assert isinstance(missing, NotFound)
                assert got.message == missing.message.replace(release[:-4] + "zzzz", release)
            else:
                assert not isinstance(got, Forbidden | Unauthenticated | NotFound), (which, got)


@pytest.mark.parametrize(
    ("verb", "path", "body", "method"),
    [
        ("GET", "/v1/apps/{}/machines", None, "ListMachines"),
        ("POST", "/v1/apps/{}/machines", {"config": {"image": "nginx"}, "skip_launch": True}, "CreateMachine"),
        ("GET", "/v1/apps/{}/volumes", None, "ListVolumes"),
        ("POST", "/v1/apps/{}/machines/00100000000000/exec", {"cmd": "true"}, "ExecMachine"),
        ("POST", "/v1/apps/{}/secrets/A", {"value": "x"}, "SetSecret"),
        ("GET", "/v1/apps/{}", None, "GetApp"),
    ],
)
async def test_rest_answers_likewise(world: World, verb: str, path: str, body: Any, method: str) -> None:
    for which, kind in world.kinds.items():
        for scheme, (where, app) in zip(("Bearer", "FlyV1") * 2, world.apps.items(), strict=True):
            headers = {"authorization": f"{scheme} {kind.token}".strip()}
            answer = await world.region.call(verb, path.format(app), body, headers=headers, token=None)
            hidden = {"error": f"there is no app '{app}' that this token reaches", "status": "not_found"}
            if kind.refused:
                assert answer.status == 401, (which, where)
                assert answer.json["status"] == "unauthorized"
            elif where not in kind.apps:
                assert (answer.status, answer.json) == (404, hidden), (which, where)
            elif method not in kind.methods:
                assert (answer.status, answer.json["status"]) == (403, "forbidden"), (which, where)
            else:
                assert answer.status not in (401, 403), (which, where, answer)
                assert answer.json != hidden


async def test_nothing_was_left_behind_where_nobody_of_another_organization_may_do_anything(world: World) -> None:
    """After the matrix: each change of the foreign app was made by those that reach it."""
    reaching = [kind for kind in world.kinds.values() if FOREIGN in kind.apps and "CreateMachine" in kind.methods]
    listed = await world.region.call("GET", f"/v1/apps/{world.apps[FOREIGN]}/machines")
    assert len(listed.json) <= 3 * len(reaching)


async def test_200_bad_tokens_are_refused_and_none_is_logged(
    world: World, capfd: pytest.CaptureFixture[str], record_property: Any
) -> None:
    draw = random.Random(7)
    app = world.apps[REACHED]
    slowest, bad = 0.0, bad_tokens(world, draw)
    assert len(bad) == 200
    for what, token, statuses in bad:
        began = time.perf_counter()
        answer = await world.region.call("GET", f"/v1/apps/{app}/machines", token=token)
        slowest = max(slowest, time.perf_counter() - began)
        assert answer.status in statuses, (what, answer.status)
        assert len(token) < 40 or token[20:60] not in json.dumps(answer.json)
    decided = max(seconds_to_decide(world.region, token) for _, token, _ in bad)
    record_property("slowest_ms", slowest * 1e3)
    output = capfd.readouterr()
    for what, token, _ in bad:
        for piece in (token, token[20:60]):
            assert len(piece) < 40 or (piece not in output.out and piece not in output.err), what
    with capfd.disabled():
        print(f"\n200 bad tokens over REST: {slowest * 1e3:.2f} ms at most, to decide {decided * 1e3:.2f} ms of CPU")


def seconds_to_decide(region: TestRegion, token: str) -> float:
    """How much time of the CPU the gateway takes to think about a token."""
    began = time.thread_time()
    with suppress(Unauthenticated):
        region.gateway.grant_of(token)
    return time.thread_time() - began


def bad_tokens(world: World, draw: random.Random) -> list[tuple[str, str, tuple[int, ...]]]:
    """What nobody may come in with, each with the statuses that are right for it."""
    good = mint(KEY, 7, organization=OURS).token
    raw = base64.urlsafe_b64decode(good + "=" * (-len(good) % 4))
    bad: list[tuple[str, str, tuple[int, ...]]] = []
    for _ in range(60):
        changed = bytearray(raw)
        changed[draw.randrange(8, len(raw))] ^= 1 << draw.randrange(8)
        bad.append(("flipped", base64.urlsafe_b64encode(bytes(changed)).decode(), (401,)))
    bad += [("truncated", good[: draw.randrange(1, len(good) - 4)], (401,)) for _ in range(30)]
    bad += [("forged", mint(secrets.token_bytes(32), 7, organization=OURS).token, (401,)) for _ in range(30)]
    for _ in range(30):
        ends = time.time() - draw.randrange(1, 10**6)
        bad.append(("expired", mint(KEY, 7, organization=OURS, expires_at=ends).token, (401,)))
    for _ in range(20):
        wrong = attenuate(mint(secrets.token_bytes(32), 6, organization=OURS).token, scope="read-only").token
        bad.append(("attenuated, of a strange key", wrong, (401,)))
    revoked = world.kinds["revoked"].token
    bad += [("made from a revoked one", attenuate(revoked, app="shop").token, (401,)) for _ in range(15)]
    for _ in range(14):
        narrowed = attenuate(mint(KEY, 7, organization=OURS, app="blog").token, app="shop")
        bad.append(("narrowed to nothing", narrowed.token, (404,)))
    bad.append(("much too long", "x" * 50_000, (401, 431)))
    return bad


async def test_a_revocation_made_in_the_region_works_at_once_and_one_key_less_ends_its_tokens(world: World) -> None:
    region, path = world.region, f"/v1/apps/{world.apps[REACHED]}/machines"
    token = mint(OLDER_KEY, 6, organization=OURS)
    kept = mint(OLDER_KEY, 6, organization=OURS)
    assert (await region.call("GET", path, token=token.token)).status == 200
    await world.catalog.RecordRevocation(catalog.RecordRevocationRequest(id=token.id))

    async def refused(token: str) -> bool:
        return (await region.call("GET", path, token=token)).status == 401

    await eventually(lambda: refused(token.token), seconds=2)
    assert (await region.call("GET", path, token=kept.token)).status == 200
    duty = await world.region.store.AcquireDuty(duty_request())
    state = await world.catalog.GetCatalogState(catalog.GetCatalogStateRequest())
    whole = catalog.ApplyCatalogChangesRequest(
        term=store.DutyTerm(duty="pull", term=duty.term),
        after_position=state.position,
        position=state.position + 1,
        whole=True,
        records=[catalog.CatalogRecord(token_key=TokenKeyRecord(id="7", public_key=public_key_of(KEY)))],
    )
    await world.catalog.ApplyCatalogChanges(whole)
    await eventually(lambda: refused(kept.token), seconds=2)
    assert await refused(token.token), "a snapshot of the centre takes no revocation back"


async def test_a_watch_ends_when_its_token_is_revoked(world: World) -> None:
    app, method = world.apps[REACHED], METHODS["Machines/WatchMachines"]
    token = mint(KEY, 7, organization=OURS, scope="read-only")
    watch = world.channel.unary_stream(
        path_of(method),
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )(request_of(method, app, ""), timeout=30, metadata=(("authorization", f"Bearer {token.token}"),))
    responses = aiter(watch)
    await anext(responses)
    await world.catalog.RecordRevocation(catalog.RecordRevocationRequest(id=token.id))

    async def refused() -> bool:
        return (await world.region.call("GET", f"/v1/apps/{app}", token=token.token)).status == 401

    await eventually(refused)
    made, seen = await world.region.machine(app), list[str]()

    async def read_on() -> None:
        async for response in responses:
            seen.append(str(response))

    with pytest.raises(Unauthenticated, match="revoked"):
        await read_on()
    assert not any(made["id"] in text for text in seen)


def duty_request() -> store.AcquireDutyRequest:
    request = store.AcquireDutyRequest(duty="pull", holder="tests")
    request.lease.seconds = 5
    return request
