"""A deploy of the centre: checked against what the regions need of it, sealed, watched, and rolled back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.cli import handover_calls, inside, processes
from services.cli.console import CommandError
from services.cli.mesh import CENTRAL, Mesh, Process

if TYPE_CHECKING:
    import grpc
    from skerry.handover.v1 import handover_pb2

_QUERY = "query { converter { release parts { part versions } } }"
_CALL_SECONDS = 10.0
READY_SECONDS = 30.0
WATCH_SECONDS = 5.0
"""How long the regions' refusals are watched after each instance."""
_WATCH_EVERY = 0.5
_NEEDING = ("central", "shadow")

Served = Mapping[str, Sequence[int]]
"""Part to the versions at which a centre converts it."""


def converter_of(mesh: Mesh, url: str) -> tuple[str, dict[str, list[int]]]:
    """The release of the centre at `url`, and what it converts. Raises CommandError when it cannot be asked."""
    import httpx

    endpoint = url.rstrip("/").removesuffix("/graphql") + "/graphql"
    headers = {"authorization": f"Bearer {mesh.central_secret('central-token')}"}
    try:
        answer = httpx.post(endpoint, json={"query": _QUERY}, headers=headers, timeout=_CALL_SECONDS)
        converter = answer.json()["data"]["converter"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"the centre at {url} does not say what it converts: {error or type(error)}") from None
    return converter["release"], {part["part"]: list(part["versions"]) for part in converter["parts"]}


def unserved(statuses: Mapping[str, handover_pb2.GetStatusResponse | inside.Refusal], served: Served) -> dict[str, Any]:
    """Region to the parts that it needs of the centre and that `served` lacks, or None for one that does not answer."""
    lacking: dict[str, Any] = {}
    for region, status in statuses.items():
        if isinstance(status, inside.Refusal):
            lacking[region] = None
            continue
        parts = [
            entry.part
            for entry in status.plan.parts
            if handover_calls.mode_name(entry.mode) in _NEEDING and not served.get(entry.part)
        ]
        if parts:
            lacking[region] = parts
    return lacking


def refusal(release: str, lacking: Mapping[str, Any]) -> str:
    """Why `release` must not be deployed, in a sentence."""
    named = "; ".join(
        f"{region} does not answer and counts as needing everything"
        if parts is None
        else f"{region} still needs {', '.join(parts)}"
        for region, parts in lacking.items()
    )
    return f"release {release} of the centre would leave parts unserved: {named}"


class Deploy:
    """One deploy of `release` to the instances of a mesh's centre, one after the other."""

    def __init__(self, mesh: Mesh, release: str, tell: Callable[[str], None]) -> None:
        self._mesh = mesh
        self._release = release
        self._before = mesh.central_releases
        self._tell = tell

    def run(self, *, force: bool) -> bool:
        """Deploy; returns False when it was rolled back.

        Raises CommandError when it is refused; nothing has changed then.
        """
        after = self._asked_of_a_candidate()
        before = self._served_now()
        dropped = [part for part in before if not after.get(part)]
        lacking = unserved(self._statuses(), after)
        if lacking and not force:
            raise CommandError(refusal(self._release, lacking))
        if lacking:
            self._tell(f"forced: {refusal(self._release, lacking)}")
        if dropped:
            self._seal(dropped, force=force)
        both = {part: sorted({*before.get(part, ()), *after.get(part, ())}) for part in {*before, *after}}
        self._allow(both)
        refused_before = self._refusals()
        for process in self._mesh.processes(CENTRAL):
            self._replace(process, self._release)
            if self._refusals_rise(refused_before):
                self._roll_back(before)
                return False
        self._allow({part: versions for part, versions in after.items() if versions})
        return True

    def replace_all(self, pause: Callable[[], None] = lambda: None) -> None:
        """Replace one instance after the other, asking nobody and watching nothing; `pause` comes after each."""
        for process in self._mesh.processes(CENTRAL):
            self._replace(process, self._release)
            pause()

    def _asked_of_a_candidate(self) -> dict[str, list[int]]:
        """What the release converts, asked of an instance that serves nobody."""
        from services.central import releases

        try:
            chosen = releases.choose(self._release, None)
        except ValueError as error:
            raise CommandError(str(error)) from None
        return {part: list(versions) for part, versions in chosen.parts.items()}

    def _served_now(self) -> dict[str, list[int]]:
        return converter_of(self._mesh, self._mesh.central_urls[0])[1]

    def _statuses(self) -> Mapping[str, Any]:
        return handover_calls.statuses(self._mesh, list(self._mesh.regions))

    def _everywhere(self, rpc: str, request: Any) -> dict[str, inside.Refusal]:
        async def work(channel: grpc.aio.Channel) -> None:
            await getattr(handover_calls.stub(channel), rpc)(request, timeout=_CALL_SECONDS)

        answers = inside.ask_all(self._mesh, list(self._mesh.regions), work)
        return {region: answer for region, answer in answers.items() if isinstance(answer, inside.Refusal)}

    def _seal(self, parts: Sequence[str], *, force: bool) -> None:
        from skerry.handover.v1 import handover_pb2

        request = handover_pb2.SealRequest(parts=parts, release=self._release, who=inside.operator())
        refused = self._everywhere("Seal", request)
        if refused and not force:
            self._unseal()
            raise CommandError("; ".join(map(str, refused.values())))
        self._tell(f"sealed {', '.join(parts)}" + (f", but not in {', '.join(refused)}" if refused else ""))

    def _unseal(self) -> None:
        from skerry.handover.v1 import handover_pb2

        request = handover_pb2.UnsealRequest(release=self._release, who=inside.operator())
        while refused := self._everywhere("Unseal", request):
            self._tell(f"lifting the seal again: {'; '.join(map(str, refused.values()))}")
            time.sleep(_WATCH_EVERY)

    def _allow(self, versions: Mapping[str, Sequence[int]]) -> None:
        from skerry.handover.v1 import handover_pb2

        entries = [handover_pb2.CentralVersions(part=part, versions=each) for part, each in versions.items()]
        request = handover_pb2.SetCentralVersionsRequest(parts=entries, who=inside.operator())
        if refused := self._everywhere("SetCentralVersions", request):
            self._tell(f"not told which versions are allowed: {'; '.join(map(str, refused.values()))}")

    def _replace(self, process: Process, release: str) -> None:
        """End an instance, and start it again as `release`."""
        from services.cli.readiness import Probe

        self._mesh.set_central_release(process.instance, release)
        if (pid := processes.running(self._mesh).get(process)) is not None:
            processes.end([pid], grace=10.0)
        processes.spawn(self._mesh, process)
        with Probe(self._mesh, process) as probe:
            if not processes.wait_until(probe.is_ready, READY_SECONDS):
                raise CommandError(f"{process.name} of the centre is not ready; see {self._mesh.log_file(process)}")
        self._mesh.write_endpoints(processes.running(self._mesh))
        self._tell(f"{process.name} of the centre runs release {release}")

    def _refusals(self) -> dict[tuple[str, str], int]:
        """Conversions that each converter of the regions refused because nobody serves a part."""
        return {
            (region, instance.name): instance.unserved_conversions
            for region, status in self._statuses().items()
            if not isinstance(status, inside.Refusal)
            for instance in status.instances
        }

    def _refusals_rise(self, before: Mapping[tuple[str, str], int]) -> bool:
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            if any(count > before.get(instance, 0) for instance, count in self._refusals().items()):
                return True
            time.sleep(_WATCH_EVERY)
        return False

    def _roll_back(self, served: Served) -> None:
        self._tell("the regions refuse conversions: rolling back")
        for process, release in zip(self._mesh.processes(CENTRAL), self._before, strict=True):
            if self._mesh.central_releases[process.instance - 1] != release:
                self._replace(process, release)
        self._unseal()
        self._allow(served)
