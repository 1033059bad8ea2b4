"""Verbs, updates and observations in any order, on the real store, against a model in a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from skerry.store.v1 import store_pb2 as pb
from skerry.types.v1.resources_pb2 import Resources

from services.machine_store.transitions import state_name
from services.runtime.errors import NameTaken, NoCapacity, SkerryError, StillRunning, WrongState
from tests.integration.machine_store.stores import (
    Store,
    checks,
    destroyed,
    exited,
    failed,
    left,
    running_store,
    started,
)

T = TypeVar("T")

WORKERS = ("w1", "w2")
ROOM = 4  # CPUs of a worker: so few that updates often have to move
VERBS = {"start": pb.VERB_START, "stop": pb.VERB_STOP, "restart": pb.VERB_RESTART, "destroy": pb.VERB_DESTROY}

# The table of the reference, told once more in the words of states: what each verb leads to. "ok" is nothing to do.
TABLE = {
    "start": {
        **dict.fromkeys(("created", "stopped", "failed"), "starting"),
        **dict.fromkeys(("starting", "restarting", "started"), "ok"),
    },
    "stop": {
        "created": "stopped",
        **dict.fromkeys(("stopped", "failed"), "ok"),
        **dict.fromkeys(("starting", "restarting", "started", "stopping"), "stopping"),
    },
    "restart": {
        **dict.fromkeys(("created", "stopped", "failed"), "starting"),
        **dict.fromkeys(("starting", "restarting", "started"), "restarting"),
    },
    "destroy": {
        **dict.fromkeys(("created", "stopped", "failed"), "destroying"),
        **dict.fromkeys(("starting", "restarting", "started", "stopping"), "running"),
        **dict.fromkeys(("destroying", "destroyed"), "ok"),
    },
    "update": {
        **dict.fromkeys(("created", "stopped", "failed"), "stopped"),
        **dict.fromkeys(("starting", "restarting", "started"), "restarting"),
        "stopping": "stopping",
    },
}


@dataclass
class Model:
    """What a machine must be."""

    id: str
    name: str
    state: str
    generation: int
    worker: str
    cpus: int
    leaving: str = ""
    leaving_cpus: int = 0
    version: int = 1
    events: list[str] = field(default_factory=list)

    @property
    def record(self) -> pb.MachineRecord:
        return pb.MachineRecord(id=self.id, generation=self.generation)

    def enter(self, state: str, event: str) -> None:
        self.state = state
        self.events.append(event)
        if state in ("starting", "restarting"):
            self.generation += 1

    def let_go(self) -> None:
        self.leaving, self.leaving_cpus = "", 0
        if self.state == "stopping":
            self.state = "stopped"


class Life(RuleBasedStateMachine):
    """Machines of one app on two workers with room for a few. Each run has a database of its own."""

    runner: asyncio.Runner
    template: str
    admin: str
    number = 0

    machines = Bundle("machines")

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, Model] = {}
        self.stack = AsyncExitStack()
        self.store: Store
        self.names = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 20))

    @initialize()
    def begin(self) -> None:
        self.do(self._begin())

    async def _begin(self) -> None:
        Life.number += 1
        name = f"{self.template}_{Life.number}"
        connection = await asyncpg.connect(self.admin)
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{self.template}"')
        await connection.close()
        dsn = self.admin.replace("/postgres?", f"/{name}?")
        self.store = await self.stack.enter_async_context(running_store(dsn, seed=Life.number))
        await self.store.app()
        for worker in WORKERS:
            await self.store.worker(worker, Resources(shared_cpu_millicores=ROOM * 1000))

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())

    def free(self, worker: str) -> int:
        held = sum(m.cpus for m in self.models.values() if m.worker == worker and m.state != "destroyed")
        return ROOM - held - sum(m.leaving_cpus for m in self.models.values() if m.leaving == worker)

    @rule(
        target=machines,
        launch=st.sampled_from([True, True, False]),
        cpus=st.integers(1, 3),
        order=st.permutations(WORKERS),
        same_name=st.booleans(),
    )
    def create(self, launch: bool, cpus: int, order: list[str], same_name: bool) -> Any:
        live = [m.name for m in self.models.values() if m.state != "destroyed"]
        self.names += 1
        name = live[0] if same_name and live else f"m{self.names}"
        place = next((worker for worker in order if self.free(worker) >= cpus), None)
        need = Resources(shared_cpu_millicores=cpus * 1000)
        expected = NameTaken if name in live else NoCapacity if place is None else None
        request = self.store.create(name, launch=launch, need=need, workers=order)
        if expected is not None:
            with pytest.raises(expected):
                self.do(request)
            return multiple()
        assert place is not None
        machine = self.do(request)
        state = "starting" if launch else "created"
        self.models[machine.id] = Model(machine.id, name, state, int(launch), place, cpus, events=["launch"])
        return machine.id

    @rule(machine=machines, verb=st.sampled_from(sorted(VERBS)), force=st.booleans())
    def apply(self, machine: str, verb: str, force: bool) -> None:
        model = self.models[machine]
        expected = TABLE[verb].get(model.state, "wrong")
        if expected == "running" and force:
            expected = "destroying"
        request = self.store.verb(machine, VERBS[verb], force=force)
        if expected in ("wrong", "running"):
            with pytest.raises(WrongState if expected == "wrong" else StillRunning):
                self.do(request)
            return
        answer = self.do(request)
        assert state_name(answer.previous_state) == model.state
        assert answer.changed == (expected != "ok")
        if expected != "ok":
            model.enter(expected, verb)

    @rule(machine=machines, cpus=st.integers(1, 4), launch=st.booleans(), order=st.permutations(WORKERS))
    def update(self, machine: str, cpus: int, launch: bool, order: list[str]) -> None:
        model = self.models[machine]
        expected = TABLE["update"].get(model.state, "wrong")
        if expected == "restarting" and not launch:
            expected = "stopping"
        stays = self.free(model.worker) + model.cpus >= cpus
        others = [w for w in order if w not in (model.worker, model.leaving) and self.free(w) >= cpus]
        need = Resources(shared_cpu_millicores=cpus * 1000)
        request = self.store.update(machine, need=need, workers=order, skip_launch=not launch)
        refusal: type[SkerryError] | None = None
        if expected == "wrong":
            refusal = WrongState
        elif not stays and not others:
            refusal = NoCapacity
        if refusal is not None:
            with pytest.raises(refusal):
                self.do(request)
            return
        ran = model.generation > 0
        self.do(request)
        if not stays:
            if ran and not model.leaving:
                model.leaving, model.leaving_cpus = model.worker, model.cpus
            model.worker = others[0]
        model.cpus = cpus
        model.version += 1
        model.enter(expected, "update")

    @rule(
        machine=machines,
        what=st.sampled_from(["started", "exited", "restarting", "failed", "destroyed", "left", "checks"]),
        older=st.integers(0, 1),
        where=st.sampled_from(["its worker", "its worker", "the one it leaves", "w1"]),
        twice=st.booleans(),
    )
    def observe(self, machine: str, what: str, older: int, where: str, twice: bool) -> None:
        model = self.models[machine]
        worker = {"its worker": model.worker, "the one it leaves": model.leaving or model.worker}.get(where, where)
        record = model.record
        record.generation = max(0, record.generation - older)
        make: dict[str, Callable[[pb.MachineRecord], pb.Observation]] = {
            "started": started,
            "exited": exited,
            "restarting": lambda m: exited(m, restarting=True),
            "failed": failed,
            "destroyed": destroyed,
            "left": left,
            "checks": lambda m: checks(m, "passing"),
        }
        observation = make[what](record)
        self.do(self.store.report(worker, observation))
        if twice:
            self.do(self.store.report_again(worker, observation))
        if worker == model.worker:
            self.seen_here(model, what, present=record.generation == model.generation)
        elif worker == model.leaving:
            if what in ("left", "destroyed", "exited"):
                model.let_go()
            if what in ("started", "exited", "restarting", "failed"):
                model.events.append(EVENT[what])

    def seen_here(self, model: Model, what: str, *, present: bool) -> None:
        if model.state == "destroyed" or what in ("left", "checks"):
            return
        if what == "destroyed":
            if model.state == "destroying":
                model.enter("destroyed", "destroy")
            return
        model.events.append(EVENT[what])
        wanted = "run" if model.state in ("starting", "restarting", "started") else model.state
        after = {
            ("run", "started"): "started",
            ("run", "restarting"): "restarting",
            ("run", "exited"): "stopped",
            ("run", "failed"): "failed",
            ("stopping", "exited"): "stopped",
            ("stopping", "failed"): "stopped",
        }.get((wanted, what))
        if present and after is not None:
            model.state = after

    @rule(machine=consumes(machines))
    def destroy_for_good(self, machine: str) -> None:
        model = self.models[machine]
        if model.state not in ("destroying", "destroyed"):
            self.do(self.store.verb(machine, pb.VERB_DESTROY, force=True))
            model.enter("destroying", "destroy")
        self.do(self.store.report(model.worker, destroyed(model.record)))
        if model.state == "destroying":
            model.enter("destroyed", "destroy")
        if model.leaving:
            self.do(self.store.report(model.leaving, left(model.record)))
            model.let_go()

    @invariant()
    def the_store_and_the_model_agree(self) -> None:
        if not self.models:
            return
        for model in self.models.values():
            got = self.do(self.store.get(model.id, events=1000))
            machine = got.machine
            assert state_name(machine.state) == model.state
            assert (machine.generation, machine.worker_id) == (model.generation, model.worker)
            assert machine.leaving_worker_id == model.leaving
            assert machine.leaving_reserved.shared_cpu_millicores == model.leaving_cpus * 1000
            held = 0 if model.state == "destroyed" else model.cpus * 1000
            assert machine.reserved.shared_cpu_millicores == held
            assert [e.type for e in reversed(got.events)] == model.events
        workers = self.do(self.store.workers())
        for worker in WORKERS:
            assert workers[worker].reserved.shared_cpu_millicores == (ROOM - self.free(worker)) * 1000

    @invariant()
    def the_state_of_the_log_is_what_is_listed(self) -> None:
        if not self.models:
            return
        listed = {m.id: m for m in self.do(self.store.list())}
        expected = {m.id for m in self.models.values() if m.state != "destroyed"}
        assert set(listed) == expected
        latest = self.do(self._replay())
        for machine_id, record in listed.items():
            assert latest[machine_id] == record

    async def _replay(self) -> dict[str, pb.MachineRecord]:
        latest: dict[str, pb.MachineRecord] = {}
        async for response in self.store.stub.Watch(pb.WatchRequest(from_revision=0), timeout=10):
            for change in response.changes:
                if change.HasField("machine"):
                    latest[change.machine.id] = change.machine
            if response.revision >= response.newest_revision:
                break
        return latest


EVENT = {"started": "start", "exited": "exit", "restarting": "exit", "failed": "fail"}


def test_machines_live_as_the_tables_say(postgres: str) -> None:
    async def template() -> str:
        connection = await asyncpg.connect(postgres)
        name = "stateful_store"
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()
        async with running_store(postgres.replace("/postgres?", f"/{name}?")):
            return name

    with asyncio.Runner() as runner:
        Life.runner = runner
        Life.admin = postgres
        Life.template = runner.run(template())
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=25,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
