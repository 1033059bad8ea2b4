"""The agent of one worker: it makes what runs here into what the store wants to run here.

It is driven by levels, not by edges: for each machine it compares what is wanted with what its journal says is here,
takes the next step (reconcile.py), and compares again. Only the machine's own task changes its journal entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from errno import EDQUOT, ENOSPC
from pathlib import Path
from random import Random
from signal import SIGKILL, Signals
from typing import Never, Protocol

from skerry.store.v1.catalog_pb2 import SecretsRecord
from skerry.store.v1.store_pb2 import (
    DESIRED_STATE_STOPPED,
    MACHINE_VIEW_FULL,
    RECORD_KIND_MACHINE,
    RECORD_KIND_SNAPSHOT,
    RECORD_KIND_VOLUME,
    ChecksChanged,
    Destroyed,
    Exited,
    Failed,
    Left,
    MachineRecord,
    NotSuspended,
    Observation,
    Started,
    Suspended,
    WatchFilter,
    WatchResponse,
)
from skerry.types.v1.machine_pb2 import MACHINE_STATE_DESTROYED, MachineCheckStatus

from services.runtime.addresses import private_ip
from services.runtime.clock import Clock
from services.runtime.errors import SkerryError, WrongState
from services.runtime.following import Follower
from services.runtime.sealing import Keyring
from services.runtime.tasks import cancel, run_forever
from services.runtime.telemetry import log
from services.worker import volumes
from services.worker.checks import CheckKeeper
from services.worker.drivers.driver import (
    Assignment,
    CannotRun,
    CannotSuspend,
    Driver,
    Exit,
    Inside,
    LaunchLost,
    Recovered,
    Run,
    Running,
)
from services.worker.journal import Entry, Journal, Phase, Stop
from services.worker.observations import exit_event, missing_observation, nothing_runs, observed
from services.worker.reconcile import ALIVE, AT_REST, Step, Want, next_step, want_of
from services.worker.reporter import Ledger, Reporter
from services.worker.restart import after_exit
from services.worker.secrets import AppSecrets
from services.worker.settings import WorkerSettings

_LAUNCHES = 16
"""Machines that are being started at the same time."""
_WAIT_FOR_STORE_SECONDS = 3.0
"""After a start, how long to wait for the store's wishes before acting on those that are known from before."""
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.05
_KILL_AGAIN_SECONDS = 5.0
_DEFAULT_STOP_SECONDS = 5.0
_LAUNCH_ATTEMPTS = 5
_NO_ROOM = (ENOSPC, EDQUOT)
"""Is better as soon as somebody has made room on the disk, however long that takes."""
_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 10.0
_REPEAT_CHECK_SECONDS = 2.0
_REPEAT_AFTER_SECONDS = 5.0

_BULKY = ("config", "parts")


class Store(Ledger, volumes.Store, Protocol):
    """What of the machine-store the agent talks to. Each raises SkerryError."""

    async def network_of(self, app_name: str) -> str:
        """The private network of an app; empty when the app is gone."""
        ...

    async def secrets_of(self, app_id: str) -> SecretsRecord | None:
        """The secrets of an app, sealed; None when it never had any."""
        ...

    async def follow(self, filter: WatchFilter, follower: Follower, on_caught_up: Callable[[], None]) -> Never: ...


class DataInUse(Exception):
    """Another agent works on the same data."""


@dataclass(slots=True, eq=False)
class _Machine:
    """A machine that is, was or will be here."""

    id: str
    record: MachineRecord | None = None
    known_from_before: bool = False
    """The record is that of its last run, not the store's word."""
    private_ip: str = ""
    """Empty until it was first needed."""
    running: Running | None = None
    ended: Exit | CannotRun | None = None
    """How what ran has ended, until that is in the journal."""
    stop: Stop = Stop.NO
    """Why it is being stopped, where the journal could not take that."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failures: int = 0
    settled_at: float = 0.0
    """When its record last changed or an observation of it was repeated, by the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine that is here, as the agent knows it."""

    worker_id: str
    entry: Entry


class Agent:
    """One worker's agent. `run` it once; `halt` stops its machines, also when it does not run."""

    def __init__(
        self,
        settings: WorkerSettings,
        store: Store,
        driver: Driver,
        *,
        region: str,
        cell: str,
        address: Callable[[], str],
        clock: Clock,
        random: Random,
        new_journal_id: Callable[[], str],
        keyring: Keyring | None = None,
    ) -> None:
        """`keyring` opens secrets of apps; without it, machines have none."""
        self._settings = settings
        self._store = store
        self._driver = driver
        self._secrets = AppSecrets(settings.data / "secrets", store.secrets_of, keyring)
        self._region = region
        self._cell = cell
        self._address = address
        self._clock = clock
        self._random = random
        self._new_journal_id = new_journal_id
        self._machines: dict[str, _Machine] = {}
        self._networks: dict[str, str] = {}
        self._told_gone: dict[str, int] = {}
        """Machine to the observation that told of its end, until the store has that."""
        self._launches = asyncio.Semaphore(_LAUNCHES)
        self._may_act = asyncio.Event()
        self._checks = CheckKeeper(clock, random, self._tell_checks)
        self._synced = False
        self._halting = False
        self._halted_by = 0.0
        self._snapshot: set[str] | None = None
        self._journal: Journal | None = None
        self._reporter: Reporter | None = None
        self.volumes = volumes.VolumeKeeper(
            settings.data, settings.id, cell, store, clock, on_change=self._poke_those_at
        )
        """The volumes of the worker."""

    @property
    def worker_id(self) -> str:
        """Id of the worker."""
        return self._settings.id

    def instances(self) -> list[Instance]:
        """What is here, by machine id."""
        entries = self._journal.entries if self._journal is not None else {}
        return [Instance(self.worker_id, entries[machine_id]) for machine_id in sorted(entries)]

    def log_of(self, machine_id: str) -> Path | None:
        """The log of a machine that is here; None if it is not."""
        here = self._journal is not None and machine_id in self._journal.entries
        return self._driver.log_of(machine_id) if here else None

    def has(self, machine_id: str) -> bool:
        """Whether something of a machine is here."""
        return self._journal is not None and machine_id in self._journal.entries

    def inside(self, machine_id: str) -> tuple[Run, Inside, asyncio.Future[Exit]]:
        """The run of a machine that is here, its inside, and what is done once it ends. Raises WrongState."""
        machine = self._machines.get(machine_id)
        running = machine.running if machine is not None else None
        inside = self._driver.inside(running.run) if running is not None else None
        if running is None or inside is None:
            raise WrongState(f"machine {machine_id} does not run: start it first", metadata={"machine_id": machine_id})
        return running.run, inside, running.ended

    def send_signal(self, machine_id: str, number: int) -> None:
        """Send a signal to the processes of a machine that runs here. Raises WrongState."""
        run, _, _ = self.inside(machine_id)
        self._driver.signal(run, number)

    async def run(self, ready: Callable[[], None]) -> Never:
        """Work until cancelled; machines go on without it. `ready` is called once the store's wishes are known here.

        Raises DataInUse; JournalDamaged; OSError if the journal cannot be opened or brought to the disk; TaskDied.
        """
        lock = await self._lock()
        try:
            journal = self._open_journal()
            driver_ready = asyncio.Event()
            await run_forever(
                driver=self._driver.work(driver_ready.set), agent=self._work(journal, driver_ready, ready)
            )
        finally:
            await self._put_down()
            os.close(lock)

    async def halt(self, timeout: float) -> None:
        """Stop everything that runs here, within `timeout` seconds; the next agent starts it again.

        What has not stopped by then is killed. Works on the data alone when the agent does not run; one that runs
        starts nothing any more. Raises as `run` does.
        """
        if self._journal is not None:
            await self._stop_all(timeout)
            return
        lock = await self._lock()
        try:
            self._open_journal()
            driver_ready = asyncio.Event()
            driving = asyncio.create_task(self._driver.work(driver_ready.set))
            try:
                await driver_ready.wait()
                await self._recover()
                await self._stop_all(timeout)
            finally:
                await cancel(driving)
        finally:
            await self._put_down()
            os.close(lock)

    # The parts of `run`

    async def _lock(self) -> int:
        """The descriptor that holds the data. No child shares it, so the data are free once this process is gone."""
        self._settings.data.mkdir(parents=True, exist_ok=True)
        path = self._settings.data / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = self._clock.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if self._clock.monotonic() > deadline:
                    os.close(fd)
                    raise DataInUse(
                        f"another process works on {self._settings.data}: end it, or give worker {self.worker_id} "
                        "a directory of its own"
                    ) from None
                await self._clock.sleep(_LOCK_POLL_SECONDS)

    def _open_journal(self) -> Journal:
        journal = Journal(self._settings.data / "journal", self._new_journal_id)
        if journal.damaged_bytes:
            log.warning("journal_cut_off", worker=self.worker_id, dropped_bytes=journal.damaged_bytes)
        self._journal = journal
        self._reporter = Reporter(
            self._settings,
            journal,
            self._store,
            address=self._address,
            driver=self._driver.name,
            clock=self._clock,
            random=self._random,
            on_progress=self._on_progress,
        )
        return journal

    async def _put_down(self) -> None:
        await cancel(*(machine.task for machine in self._machines.values() if machine.task is not None))
        await self._checks.close()
        if self._journal is not None:
            self._journal.close()
        self._journal = self._reporter = None
        self._machines.clear()
        self._may_act.clear()
        self._synced = self._halting = False

    async def _work(self, journal: Journal, driver_ready: asyncio.Event, ready: Callable[[], None]) -> None:
        await driver_ready.wait()
        await self._recover()
        caught_up = asyncio.Event()
        kinds = [RECORD_KIND_MACHINE, RECORD_KIND_VOLUME, RECORD_KIND_SNAPSHOT]
        filter = WatchFilter(kinds=kinds, worker_id=self.worker_id, view=MACHINE_VIEW_FULL)
        assert self._reporter is not None
        await run_forever(
            reporter=self._reporter.run(),
            follower=self._store.follow(filter, _Wishes(self), caught_up.set),
            readiness=self._tell_ready(self._reporter, caught_up, ready),
            checks=self._checks.run(),
            repeats=self._repeat_what_was_lost(journal),
            volumes=self.volumes.run(),
        )

    async def _tell_ready(self, reporter: Reporter, caught_up: asyncio.Event, ready: Callable[[], None]) -> Never:
        try:
            async with asyncio.timeout(_WAIT_FOR_STORE_SECONDS):
                await caught_up.wait()
        except TimeoutError:
            log.warning("store_not_heard", worker=self.worker_id, machines=len(self._machines))
        self._act()
        await caught_up.wait()
        await reporter.registered.wait()
        ready()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def _act(self) -> None:
        self._may_act.set()
        for machine in list(self._machines.values()):
            self._poke(machine)

    async def _recover(self) -> None:
        """Find out what became of everything that was here when the last agent ended."""
        journal = self._here()
        for found in list(self._driver.found()):
            run, record = found.run, found.record
            entry = journal.entries.get(run.machine_id)
            machine = self._machine(run.machine_id)
            machine.record, machine.known_from_before = record, record is not None
            machine.private_ip = found.private_ip
            if entry is None or entry.run < run.number:
                # The journal has lost it: its directory still knows what runs.
                journal.write([_entry_found(run, record)])
        for entry in list(journal.entries.values()):
            machine = self._machine(entry.machine_id)
            if entry.phase in ALIVE:
                try:
                    recovered = await self._driver.recover(Run(entry.machine_id, entry.run))
                    self._take_recovered(machine, entry, recovered)
                except OSError as error:
                    log.warning("machine_not_recovered", machine=machine.id, why=str(error))

    def _take_recovered(self, machine: _Machine, entry: Entry, recovered: Recovered) -> None:
        running, exit = recovered.running, recovered.exit
        if running is None and exit is None:
            if recovered.refused:
                self._write_failed(machine, entry, recovered.refused)
            else:
                self._write(replace(entry, phase=Phase.PAUSED, stop=Stop.NO, pid=0))
            return
        if running is not None:
            log.info("machine_adopted", machine=machine.id, pid=running.pid)
            self._attach(machine, running)
            if entry.phase is Phase.SUSPENDED:
                self._checks.end(machine.id)
        machine.ended = machine.ended or exit
        if entry.phase is Phase.STARTING:
            at = running.started_at if running is not None else self._clock.now()
            self._write_started(entry, running.pid if running is not None else 0, at)

    async def _stop_all(self, timeout: float) -> None:
        self._halting = True
        self._halted_by = self._clock.monotonic() + timeout
        self._act()
        while tasks := [machine.task for machine in self._machines.values() if machine.task is not None]:
            await asyncio.wait(tasks)
        await self._here().sync()

    # What the store wants

    def take(self, response: WatchResponse) -> None:
        """Take in a message of the watch."""
        for change in response.changes:
            match change.WhichOneof("record"):
                case "machine":
                    self._take_record(change.machine)
                case "volume":
                    self.volumes.take_volume(change.volume)
                case "snapshot":
                    self.volumes.take_snapshot(change.snapshot)
        if response.snapshot_complete and self._snapshot is not None:
            present, self._snapshot = self._snapshot, None
            self._synced = True
            for machine in list(self._machines.values()):
                if machine.id not in present:
                    machine.record, machine.known_from_before = None, False
                    self._poke(machine)
            records = (machine.record for machine in self._machines.values())
            self._secrets.forget_all_but(frozenset(record.app_id for record in records if record is not None))

    def begin_snapshot(self) -> None:
        """The whole state comes next."""
        self._snapshot = set()

    def _take_record(self, record: MachineRecord) -> None:
        if self._snapshot is not None:
            self._snapshot.add(record.id)
        known = record.id in self._machines or record.id in self._here().entries
        if record.id in self._told_gone or (record.state == MACHINE_STATE_DESTROYED and not known):
            return
        machine = self._machine(record.id)
        before = machine.record
        if before is not None and not machine.known_from_before and before.revision > record.revision:
            return
        kept = MachineRecord()
        kept.CopyFrom(record)
        for bulky in _BULKY:
            kept.ClearField(bulky)  # type: ignore[arg-type]
        machine.record, machine.known_from_before = kept, False
        machine.settled_at = self._clock.monotonic()
        self._poke(machine)

    # One machine

    def _machine(self, machine_id: str) -> _Machine:
        machine = self._machines.get(machine_id)
        if machine is None:
            machine = self._machines[machine_id] = _Machine(machine_id)
        return machine

    def _poke(self, machine: _Machine) -> None:
        machine.changed.set()
        if machine.task is None and self._may_act.is_set():
            machine.task = asyncio.create_task(self._converge(machine), name=f"machine {machine.id}")

    async def _converge(self, machine: _Machine) -> None:
        while True:
            machine.changed.clear()
            step = Step.NONE
            try:
                await self._make_certain(machine)
                step = self._next(machine)
                if step is Step.NONE:
                    break
                await self._take_step(machine, step)
                machine.failures = 0
            except (OSError, LaunchLost, SkerryError) as error:
                machine.failures += 1
                delay = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(machine.failures, 10))
                log.warning("step_failed", machine=machine.id, step=step.name, why=str(error), retry_in=delay)
                await self._wait(machine, delay)
            except Exception:
                machine.failures += 1
                log.exception("step_failed", machine=machine.id, step=step.name)
                await self._wait(machine, _LONGEST_RETRY_SECONDS)
        # Not a moment between the last look and this: whoever pokes from now on begins a new task.
        machine.task = None
        if machine.record is None and machine.id not in self._here().entries:
            self._machines.pop(machine.id, None)

    def _next(self, machine: _Machine) -> Step:
        entry = self._here().entries.get(machine.id)
        want = want_of(machine.record, entry, self.worker_id)
        if want is Want.NOTHING and not self._synced:
            want = Want.HOLD
        step = next_step(want, entry, exited=machine.ended is not None, halting=self._halting, now=self._clock.now())
        # What is known from before is enough to keep a machine up, not to start one that was down.
        paused = entry is not None and entry.phase is Phase.PAUSED
        begins = step is Step.RESUME or (step is Step.START and paused)
        return Step.NONE if machine.known_from_before and begins else step

    async def _take_step(self, machine: _Machine, step: Step) -> None:
        match step:
            case Step.WAIT:
                entry = self._here().entries[machine.id]
                await self._wait(machine, entry.restart_at - self._clock.now())
            case Step.START if not self._has_its_volumes(machine):
                await self._wait(machine, _LONGEST_RETRY_SECONDS)
            case Step.START:
                await self._start(machine)
            case Step.SUSPEND:
                await self._suspend(machine)
            case Step.RESUME:
                await self._resume(machine)
            case Step.STOP:
                await self._stop(machine)
            case Step.CONCLUDE:
                self._conclude(machine)
            case Step.SETTLE:
                self._settle(machine)
            case Step.DESTROY | Step.LEAVE | Step.FORGET:
                await self._remove(machine, step)

    def _has_its_volumes(self, machine: _Machine) -> bool:
        mounts = machine.record.spec.mounts.mounts if machine.record is not None else ()
        return all(self.volumes.is_ready(mount.volume_id) for mount in mounts if mount.volume_id)

    def _poke_those_at(self, volume_id: str) -> None:
        """A volume has come to be: machines may wait for it."""
        for machine in list(self._machines.values()):
            mounts = machine.record.spec.mounts.mounts if machine.record is not None else ()
            if any(mount.volume_id == volume_id for mount in mounts):
                self._poke(machine)

    async def _start(self, machine: _Machine) -> None:
        async with self._launches:
            record = machine.record
            # It may have waited for its turn, and the world not.
            if record is None or self._next(machine) is not Step.START:
                return
            if not machine.private_ip:
                machine.private_ip = await self._private_ip(record)
            secrets, refused = await self._secrets_of(record)
            if machine.record is not record:
                return
            before = self._here().entries.get(machine.id)
            entry = _begun(before, record)
            fresh = before is not None and before.instance_id != record.instance_id
            # Written before anything is forked: whoever reads it asks the driver what became of it. It need not be on
            # the disk yet: a host that crashes takes the process with it, and the store hears only of what was synced.
            self._write(entry)
            run = Run(machine.id, entry.run)
            if refused:
                self._write_failed(machine, entry, refused)
                return
            assignment = Assignment(record, self._region, machine.private_ip, fresh, secrets)
            try:
                running = await self._driver.launch(run, assignment)
            except CannotRun as error:
                self._write_failed(machine, entry, str(error))
            except LaunchLost as error:
                log.warning("launch_lost", machine=machine.id, why=str(error))
                recovered = await self._driver.recover(run)
                self._take_recovered(machine, entry, recovered)
                if recovered == Recovered():
                    raise
            except OSError as error:
                if machine.failures + 1 >= _LAUNCH_ATTEMPTS and error.errno not in _NO_ROOM:
                    advice = "look at the worker's disk and limits, then start it again"
                    self._write_failed(machine, entry, f"the worker could not start it: {error}; {advice}")
                    return
                self._write(replace(entry, phase=Phase.PAUSED))
                raise
            else:
                self._attach(machine, running)
                self._write_started(entry, running.pid, running.started_at)

    async def _make_certain(self, machine: _Machine) -> None:
        """Find out, or write down, what the journal could not take when it was known."""
        entry = self._here().entries.get(machine.id)
        if entry is None or entry.phase not in ALIVE or machine.ended is not None:
            return
        if machine.running is None:
            self._take_recovered(machine, entry, await self._driver.recover(Run(machine.id, entry.run)))
        elif entry.phase is Phase.STARTING:
            self._write_started(entry, machine.running.pid, machine.running.started_at)

    async def _secrets_of(self, record: MachineRecord) -> tuple[Mapping[str, str], str]:
        """The secrets that a machine starts with, and why it cannot have them; empty when it can."""
        try:
            return await self._secrets.of(record), ""
        except CannotRun as error:
            return {}, str(error)

    async def _private_ip(self, record: MachineRecord) -> str:
        if record.app_name not in self._networks:
            self._networks[record.app_name] = await self._store.network_of(record.app_name)
        return private_ip(self._networks[record.app_name], self._cell, record.worker_number, record.id)

    def _attach(self, machine: _Machine, running: Running) -> None:
        machine.running = running

        def ended(future: asyncio.Future[Exit]) -> None:
            if machine.running is not running or future.cancelled():
                return
            error = future.exception()
            machine.ended = error if isinstance(error, CannotRun) else future.result()
            self._poke(machine)

        running.ended.add_done_callback(ended)
        self._begin_checks(machine, self._clock.now() - running.started_at)

    async def _suspend(self, machine: _Machine) -> None:
        entry = self._here().entries[machine.id]
        try:
            await self._driver.suspend(Run(machine.id, entry.run))
        except CannotSuspend as error:
            log.info("machine_not_suspended", machine=machine.id, why=str(error))
            refused = NotSuspended(reason=str(error))
            self._write(entry, observed(entry, self._clock.now(), not_suspended=refused))
            await self._news_of(machine)
            return
        # Whoever finds it frozen before this is written freezes it again.
        self._checks.end(machine.id)
        entry = replace(entry, phase=Phase.SUSPENDED)
        self._write(entry, observed(entry, self._clock.now(), suspended=Suspended()))

    async def _resume(self, machine: _Machine) -> None:
        entry = replace(self._here().entries[machine.id], phase=Phase.RUNNING)
        await self._driver.resume(Run(machine.id, entry.run))
        now = self._clock.now()
        self._write(entry, observed(entry, now, started=Started(restart_count=entry.restart_count)))
        self._begin_checks(machine, now - entry.started_at)

    async def _news_of(self, machine: _Machine) -> None:
        """Return when something about the machine has changed."""
        machine.changed.clear()
        await machine.changed.wait()

    async def _stop(self, machine: _Machine) -> None:
        entry = self._here().entries[machine.id]
        if entry.stop is Stop.NO:
            entry = replace(entry, stop=Stop.PAUSE if self._halting else Stop.REQUESTED)
            try:
                self._write(entry)
            except OSError as error:
                # A disk that is full is no reason to let it run on.
                machine.stop = entry.stop
                log.warning("stop_not_written", machine=machine.id, why=str(error))
        run = Run(machine.id, entry.run)
        began = self._clock.monotonic()
        sent: Signals | None = None
        while machine.ended is None:
            number, seconds = _how_to_stop(machine.record)
            deadline = began + seconds
            if self._halting:
                deadline = min(deadline, self._halted_by)
            left = deadline - self._clock.monotonic()
            if left <= 0:
                self._driver.signal(run, SIGKILL)
                left = _KILL_AGAIN_SECONDS
            elif number is not sent:
                self._driver.signal(run, number)
                # One that is frozen would not see it.
                await self._driver.resume(run)
                sent = number
            machine.changed.clear()
            await self._wait(machine, left)

    def _conclude(self, machine: _Machine) -> None:
        self._checks.end(machine.id)
        self._write_end(machine)
        # Not before: an end that the journal cannot take now is concluded once it can.
        machine.running = machine.ended = None
        machine.stop = Stop.NO

    def _write_end(self, machine: _Machine) -> None:
        entry = self._here().entries[machine.id]
        entry = replace(entry, stop=entry.stop or machine.stop)
        exit, record = machine.ended, machine.record
        if isinstance(exit, CannotRun):
            self._write_failed(machine, entry, str(exit))
            return
        assert exit is not None
        over = replace(entry, pid=0, stop=Stop.NO, phase=Phase.ENDED)
        if entry.stop is Stop.PAUSE:
            self._write(replace(over, phase=Phase.PAUSED))
            return
        want = want_of(record, entry, self.worker_id)
        restarting = want is Want.RENEW
        if entry.stop is Stop.NO and want is Want.RUN and record is not None:
            restart = after_exit(
                record.spec.restart,
                exit_code=exit.code,
                ran_seconds=exit.at - entry.started_at,
                attempts=entry.attempts,
                random=self._random,
            )
            if restart is not None:
                restarting = True
                at = self._clock.now() + restart.delay
                over = replace(over, phase=Phase.WAITING, restart_at=at, attempts=restart.attempt)
        if record is not None and record.desired == DESIRED_STATE_STOPPED and record.generation > entry.generation:
            # A version came that is not to run: this exit is also the end of waiting for that one.
            over = replace(over, generation=record.generation)
        event = exit_event(exit, requested=entry.stop is Stop.REQUESTED, restarting=restarting)
        exited = Exited(exit=event, restart_count=entry.restart_count)
        self._write(over, observed(over, exit.at, exited=exited))

    def _settle(self, machine: _Machine) -> None:
        record = machine.record
        assert record is not None
        before = self._here().entries.get(machine.id) or Entry(machine.id, 0)
        generation = max(record.generation, before.generation)
        entry = replace(before, generation=generation, phase=Phase.ENDED, stop=Stop.NO, pid=0)
        if record.state in AT_REST:
            self._write(entry)
            return
        self._write(entry, nothing_runs(entry, self._clock.now()))

    async def _remove(self, machine: _Machine, step: Step) -> None:
        self._checks.end(machine.id)
        await self._driver.remove(machine.id)
        record = machine.record
        observations = []
        if record is not None and step in (Step.DESTROY, Step.LEAVE):
            entry = Entry(machine.id, record.generation)
            seen = {"destroyed": Destroyed()} if step is Step.DESTROY else {"left": Left()}
            observations.append(observed(entry, self._clock.now(), **seen))
        self._here().write(forget=[machine.id], observations=observations)
        for observation in observations:
            self._told_gone[machine.id] = observation.sequence
            self._wake_reporter()
        machine.record, machine.known_from_before = None, False

    async def _wait(self, machine: _Machine, seconds: float) -> None:
        """Return after `seconds`, or as soon as something about the machine has changed."""
        nap = asyncio.ensure_future(self._clock.sleep(seconds))
        news = asyncio.ensure_future(machine.changed.wait())
        try:
            await asyncio.wait((nap, news), return_when=asyncio.FIRST_COMPLETED)
        finally:
            nap.cancel()
            news.cancel()

    # What the store is told

    def _here(self) -> Journal:
        assert self._journal is not None
        return self._journal

    def _write(self, entry: Entry, *observations: Observation) -> None:
        self._here().write([entry], observations=observations)
        if observations:
            self._wake_reporter()

    def _write_started(self, entry: Entry, pid: int, at: float) -> None:
        entry = replace(entry, phase=Phase.RUNNING, pid=pid, started_at=at)
        self._write(entry, observed(entry, at, started=Started(restart_count=entry.restart_count)))

    def _write_failed(self, machine: _Machine, entry: Entry, reason: str) -> None:
        log.info("machine_cannot_run", machine=machine.id, why=reason)
        entry = replace(entry, phase=Phase.FAILED, stop=Stop.NO, pid=0, reason=reason)
        self._write(entry, observed(entry, self._clock.now(), failed=Failed(reason=reason)))

    def _wake_reporter(self) -> None:
        if self._reporter is not None:
            self._reporter.wake()

    def _on_progress(self) -> None:
        outbox = self._here().outbox
        first = outbox[0].sequence if outbox else self._here().next_sequence
        self._told_gone = {machine_id: told for machine_id, told in self._told_gone.items() if told >= first}
        self._checks.tell_again()

    async def _repeat_what_was_lost(self, journal: Journal) -> Never:
        """Tell again what the store should know by now and does not: it may have been set back to an older state."""
        while True:
            await self._clock.sleep(_REPEAT_CHECK_SECONDS)
            if not self._synced or self._halting:
                continue
            waiting = {observation.machine_id for observation in journal.outbox}
            now = self._clock.monotonic()
            for machine in self._machines.values():
                entry = journal.entries.get(machine.id)
                quiet = machine.task is None and now - machine.settled_at > _REPEAT_AFTER_SECONDS
                if quiet and entry is not None and machine.id not in waiting:
                    missing = missing_observation(machine.record, entry, self.worker_id, self._clock.now())
                    if missing is not None:
                        log.warning("observation_repeated", machine=machine.id, phase=entry.phase)
                        with contextlib.suppress(OSError):  # It is tried again.
                            self._write(entry, missing)
                        machine.settled_at = now
            self._checks.tell_again()

    def _begin_checks(self, machine: _Machine, age: float) -> None:
        if machine.record is not None:
            known = machine.record.checks if age > 1.0 else ()
            self._checks.begin(machine.id, machine.record.spec, age=max(0.0, age), known=known)

    def _tell_checks(self, machine_id: str, statuses: list[MachineCheckStatus]) -> bool:
        journal = self._here()
        entry = journal.entries.get(machine_id)
        # One at a time: the outbox must not grow while the store is away.
        if entry is None or journal.tells_checks_of(machine_id):
            return False
        try:
            self._write(entry, observed(entry, self._clock.now(), checks_changed=ChecksChanged(checks=statuses)))
        except OSError as error:
            log.warning("checks_not_told", machine=machine_id, why=str(error))
            return False
        return True


class _Wishes:
    """The agent as what a watch is fed into."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __call__(self, response: WatchResponse) -> None:
        self._agent.take(response)

    def reset(self) -> None:
        self._agent.begin_snapshot()


def _entry_found(run: Run, record: MachineRecord | None) -> Entry:
    if record is None:
        return Entry(run.machine_id, 0)
    return Entry(
        run.machine_id, record.generation, instance_id=record.instance_id, run=run.number, phase=Phase.STARTING
    )


def _begun(before: Entry | None, record: MachineRecord) -> Entry:
    """The entry of the next run."""
    entry = Entry(
        record.id,
        record.generation,
        instance_id=record.instance_id,
        run=before.run + 1 if before is not None else 1,
        phase=Phase.STARTING,
    )
    if before is None or before.generation < record.generation:
        return entry
    by_policy = before.phase is Phase.WAITING
    return replace(entry, restart_count=before.restart_count + by_policy, attempts=before.attempts)


def _how_to_stop(record: MachineRecord | None) -> tuple[Signals, float]:
    """The signal, and the seconds until SIGKILL."""
    if record is None:
        return Signals.SIGINT, _DEFAULT_STOP_SECONDS
    spec, override = record.spec.stop, record.stop
    # Whoever wrote it, a machine can be stopped.
    signal = Signals.__members__.get(override.signal or spec.signal, Signals.SIGINT)
    for source in (override, spec):
        if source.HasField("timeout"):
            return signal, max(0.0, source.timeout.ToNanoseconds() / 1e9)
    return signal, _DEFAULT_STOP_SECONDS
