"""What can be done with machines that exist: reading, starting and stopping, waiting, destroying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store
from skerry.types.v1.machine_pb2 import MachineEvent

from gateway.leases import shown_nonce
from gateway.machines import SOURCE, no_machine, region_violation
from gateway.names import is_machine_id
from gateway.pages import MOST_ON_A_PAGE, Position, cut, read_cursor
from gateway.public import public_machine
from gateway.routing import Listed
from gateway.surroundings import Surroundings
from gateway.waits import STATE_NAMES, STATES, Seen, Waits, goal_of, timeout_of
from services.runtime.durations import SECOND, parse_go_duration
from services.runtime.errors import InvalidConfig, NotFound, Violation

EVENTS_SHOWN = 20
"""Newest events that come along with a machine."""
EVENTS_DEFAULT = 50
EVENTS_MOST = 1000
VERSIONS_DEFAULT = 50
VERSIONS_MOST = 1000
STOP_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM")


async def get_machine(around: Surroundings, request: api.GetMachineRequest) -> api.Machine:
    """One machine, as the store has it now. Raises NotFound."""
    app = await around.apps.resolve(request.app_name)
    found = await _read(around, app, request.machine_id, EVENTS_SHOWN)
    return public_machine(found.machine, app, cell=around.cell, events=found.events)


async def list_machines(around: Surroundings, request: api.ListMachinesRequest) -> Listed:
    """Machines of an app, oldest first, of all regions or one, all or a page.

    Raises NotFound for the app, InvalidConfig of `state`, `region`, `limit` and `cursor`, DependencyDown for the one
    region asked for.
    """
    violations = [_unknown_state(name) for name in request.state if name not in STATES]
    if (region := region_violation(around, request.region)) is not None:
        violations.append(region)
    if request.limit > MOST_ON_A_PAGE:
        violations.append(Violation("limit", f"must be 1..{MOST_ON_A_PAGE}"))
    if violations:
        raise _invalid(violations)
    positions = read_cursor(request.cursor)
    after = positions.get(around.cell)
    listed = await around.routing.list_machines(request, lambda: _list_here(around, request, after))
    if not request.limit:
        return listed
    page = cut(listed.machines, request.limit, positions)
    return Listed(page.machines, listed.unreachable, page.next_cursor)


async def _list_here(
    around: Surroundings, request: api.ListMachinesRequest, after: Position | None
) -> list[api.Machine]:
    app = await around.apps.resolve(request.app_name)
    wanted = store.ListMachinesRequest(
        app_id=app.id,
        include_destroyed=request.include_deleted or "destroyed" in request.state,
        states=[STATES[name] for name in request.state],
        metadata=request.metadata,
        view=store.MACHINE_VIEW_BASIC if request.summary else store.MACHINE_VIEW_FULL,
        limit=request.limit,
    )
    if after is not None:
        wanted.after_created_at.CopyFrom(after.created_at)
        wanted.after_id = after.id
    pieces = around.store.ListMachines(wanted)
    return [public_machine(machine, app, cell=around.cell) async for piece in pieces for machine in piece.machines]


async def list_events(around: Surroundings, request: api.ListMachineEventsRequest) -> Sequence[MachineEvent]:
    """What happened to a machine, newest first. Raises NotFound, InvalidConfig of the field `limit`."""
    if request.limit < 0:
        raise _invalid([Violation("limit", f"must be 0..{EVENTS_MOST}")])
    app = await around.apps.resolve(request.app_name)
    _check_id(request.machine_id, request.app_name)
    limit = min(request.limit or EVENTS_DEFAULT, EVENTS_MOST)
    wanted = store.ListMachineEventsRequest(machine_id=request.machine_id, app_id=app.id, limit=limit)
    try:
        return (await around.store.ListMachineEvents(wanted)).events
    except NotFound:
        raise no_machine(request.machine_id, request.app_name) from None


async def list_versions(around: Surroundings, request: api.ListMachineVersionsRequest) -> Sequence[api.MachineVersion]:
    """The versions of a machine, newest first. Raises NotFound, InvalidConfig of the field `limit`."""
    if request.limit < 0:
        raise _invalid([Violation("limit", f"must be 0..{VERSIONS_MOST}")])
    app = await app_of(around, request)
    limit = min(request.limit or VERSIONS_DEFAULT, VERSIONS_MOST)
    wanted = store.ListMachineVersionsRequest(machine_id=request.machine_id, app_id=app.id, limit=limit)
    try:
        found = await around.retries(lambda: around.store.ListMachineVersions(wanted))
    except NotFound:
        raise no_machine(request.machine_id, request.app_name) from None
    return [api.MachineVersion(version=each.instance_id, user_config=each.config) for each in found.versions]


async def start_machine(around: Surroundings, request: api.StartMachineRequest) -> api.StartMachineResponse:
    """Start a machine. Raises NotFound, WrongState."""
    applied = await _apply(around, request, store.VERB_START)
    state = STATE_NAMES.get(applied.machine.state, "")
    message = f"machine {request.machine_id} is {state}" if applied.changed else f"machine {request.machine_id} runs"
    previous = STATE_NAMES.get(applied.previous_state, "")
    return api.StartMachineResponse(message=message, status=state, previous_state=previous)


async def stop_machine(around: Surroundings, request: api.StopMachineRequest) -> None:
    """Stop a machine. Raises NotFound, WrongState, InvalidConfig of the fields `signal` and `timeout`."""
    await _apply(around, request, store.VERB_STOP, stop=_stop(request.signal, request.timeout))


async def restart_machine(around: Surroundings, request: api.RestartMachineRequest) -> None:
    """Stop a machine and start it again. Raises NotFound, WrongState, InvalidConfig of `signal` and `timeout`."""
    stop = _stop(request.signal, request.timeout)
    if request.force_stop:
        stop = store.StopOverride(signal="SIGKILL", timeout=Duration())
    await _apply(around, request, store.VERB_RESTART, stop=stop)


async def suspend_machine(around: Surroundings, request: api.SuspendMachineRequest) -> None:
    """Freeze a machine that runs. Raises NotFound, WrongState."""
    await _apply(around, request, store.VERB_SUSPEND)


async def cordon_machine(around: Surroundings, request: api.CordonMachineRequest) -> None:
    """Leave a machine out of routing. Raises NotFound, WrongState."""
    await _apply(around, request, store.VERB_CORDON)


async def uncordon_machine(around: Surroundings, request: api.UncordonMachineRequest) -> None:
    """Let a machine rejoin routing. Raises NotFound, WrongState."""
    await _apply(around, request, store.VERB_UNCORDON)


async def delete_machine(around: Surroundings, request: api.DeleteMachineRequest) -> None:
    """Destroy a machine. Raises NotFound, StillRunning for one that runs, unless forced."""
    await _apply(around, request, store.VERB_DESTROY, force=request.force or request.kill)


async def wait_for_machine(around: Surroundings, waits: Waits, request: api.WaitMachineRequest) -> None:
    """Return once the machine is in one of the states. Raises NotFound, InvalidConfig, WaitTimeout."""
    goal = goal_of(
        request.state,
        instance_id=request.instance_id,
        version=request.version,
        from_event_id=request.from_event_id,
    )
    seconds = timeout_of(request.timeout)
    app = await around.apps.resolve(request.app_name)
    _check_id(request.machine_id, request.app_name)
    events = EVENTS_DEFAULT if goal.after else 0

    async def read() -> Seen:
        found = await _read(around, app, request.machine_id, events)
        return Seen(found.machine, found.events)

    await waits.wait(request.machine_id, goal, read, seconds)


async def app_of(around: Surroundings, request: Any) -> store.AppRecord:
    """The app of a request that names a machine. Raises NotFound, also for what cannot be the id of one."""
    app = await around.apps.resolve(request.app_name)
    _check_id(request.machine_id, request.app_name)
    return app


async def _read(around: Surroundings, app: store.AppRecord, machine_id: str, events: int) -> store.GetMachineResponse:
    _check_id(machine_id, app.name)
    request = store.GetMachineRequest(machine_id=machine_id, app_id=app.id, events=events)
    try:
        return await around.retries(lambda: around.store.GetMachine(request))
    except NotFound:
        raise no_machine(machine_id, app.name) from None


async def _apply(
    around: Surroundings,
    request: Any,
    verb: store.Verb.ValueType,
    *,
    stop: store.StopOverride | None = None,
    force: bool = False,
) -> store.ApplyVerbResponse:
    app = await app_of(around, request)
    write = store.ApplyVerbRequest(
        machine_id=request.machine_id,
        app_id=app.id,
        verb=verb,
        stop=stop,
        force=force,
        source=SOURCE,
        lease_nonce=shown_nonce(),
    )
    try:
        return await around.store.ApplyVerb(write)
    except NotFound:
        raise no_machine(request.machine_id, request.app_name) from None


def _stop(signal: str, timeout: str) -> store.StopOverride | None:
    violations: list[Violation] = []
    duration: Duration | None = None
    if signal and signal not in STOP_SIGNALS:
        violations.append(Violation("signal", f"must be one of {', '.join(STOP_SIGNALS)}, is {signal[:64]!r}"))
    if timeout:
        try:
            # In a query it may be a plain number, of seconds as in a wait's.
            plain = timeout.isascii() and timeout.isdigit() and len(timeout) <= 6
            nanoseconds = int(timeout) * SECOND if plain else parse_go_duration(timeout)
            duration = Duration(seconds=nanoseconds // SECOND, nanos=nanoseconds % SECOND)
        except ValueError as error:
            violations.append(Violation("timeout", str(error)))
    if violations:
        raise _invalid(violations)
    if not signal and not timeout:
        return None
    # Not set, it is the configuration's.
    return store.StopOverride(signal=signal, timeout=duration)


def _check_id(machine_id: str, app_name: str) -> None:
    if not is_machine_id(machine_id):
        raise no_machine(machine_id, app_name)


def _unknown_state(name: str) -> Violation:
    return Violation("state", f"{name[:64]!r} is no state of a machine; there are: {', '.join(STATES)}")


def _invalid(violations: Sequence[Violation]) -> InvalidConfig:
    return InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)
