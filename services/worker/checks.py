"""Health checks of machines, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Never

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.types.v1.machine_pb2 import MachineCheckStatus
from skerry.types.v1.spec_pb2 import CHECK_TYPE_HTTP, CheckSpec, MachineSpec

from services.runtime.clock import Clock
from services.runtime.tasks import TaskDied, cancel, run_forever

PASSING = "passing"
WARNING = "warning"
"""No result counts yet."""
CRITICAL = "critical"

_DEFAULT_INTERVAL_SECONDS = 15.0
_DEFAULT_TIMEOUT_SECONDS = 5.0
_EAGER_SECONDS = 1.0
"""While it has not passed and still may fail, a check does not wait longer than this for its next turn."""
_FIRST_SECONDS = 0.2
_TELL_SECONDS = 1.0
_BEGIN_AGAIN_SECONDS = 5.0
_DRAIN_BYTES = 65_536
_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Result:
    """What one try saw."""

    passing: bool
    output: str


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a check; `at`, in unix seconds, is when that last changed."""

    status: str
    output: str
    at: float


Probe = Callable[[CheckSpec, str], Awaitable[Result]]
"""Tries a check once against an address; takes no longer than the check's timeout, and raises nothing."""


def checks_of(spec: MachineSpec) -> dict[str, CheckSpec]:
    """Name to check: the machine's own by their names, those of services as servicecheck-NN-TYPE-PORT."""
    named = dict(spec.checks.checks)
    of_services = ((service, check) for service in spec.services.services for check in service.checks)
    for number, (service, check) in enumerate(of_services):
        filled = CheckSpec()
        filled.CopyFrom(check)
        filled.port = check.port or service.internal_port
        kind = "http" if check.type == CHECK_TYPE_HTTP else "tcp"
        named[f"servicecheck-{number:02d}-{kind}-{filled.port}"] = filled
    return named


def judge(before: Status, result: Result, *, in_grace: bool, now: float) -> Status:
    """The status after a try: failures within the grace period do not count."""
    if not result.passing and in_grace:
        return before
    after = PASSING if result.passing else CRITICAL
    if (after, result.output) == (before.status, before.output):
        return before
    return Status(after, result.output, now)


class Checks:
    """Tries every check of a machine at its interval, and tells when a status changes."""

    def __init__(
        self,
        checks: Mapping[str, CheckSpec],
        *,
        changed: Callable[[], None],
        clock: Clock,
        random: Random,
        age: float = 0.0,
        known: Iterable[MachineCheckStatus] = (),
        host: str = "127.0.0.1",
        probe: Probe | None = None,
    ) -> None:
        """`age` is for how many seconds the machine has been running, `known` what was known of it before.

        `changed` is called after each change of `statuses`.
        """
        self._checks = dict(checks)
        self._changed = changed
        self._clock = clock
        self._random = random
        self._began = clock.monotonic() - age
        self._host = host
        self._probe = probe or try_once
        unknown = Status(WARNING, "no result yet", clock.now())
        before = {one.name: Status(one.status, one.output, one.updated_at.ToNanoseconds() / 1e9) for one in known}
        self._statuses = {name: before.get(name, unknown) for name in self._checks}
        self._news = set(self._statuses) != set(before)

    def statuses(self) -> list[MachineCheckStatus]:
        """All checks, by name."""
        told = []
        for name, status in sorted(self._statuses.items()):
            at = Timestamp()
            at.FromNanoseconds(int(status.at * 1e9))
            told.append(MachineCheckStatus(name=name, status=status.status, output=status.output, updated_at=at))
        return told

    async def run(self) -> Never:
        """Try them until cancelled. Raises TaskDied."""
        if self._news:
            self._changed()
        await run_forever(**{f"check {name}": self._repeat(name, check) for name, check in self._checks.items()})

    async def _repeat(self, name: str, check: CheckSpec) -> None:
        interval = _seconds(check, "interval", _DEFAULT_INTERVAL_SECONDS)
        grace = _seconds(check, "grace_period", 0.0)
        # Spread, so that machines that came together are not all tried together for ever.
        await self._clock.sleep(self._random.uniform(0.25, 1.0) * min(interval, _FIRST_SECONDS))
        while True:
            result = await self._probe(check, self._host)
            in_grace = self._clock.monotonic() - self._began < grace
            before = self._statuses[name]
            after = judge(before, result, in_grace=in_grace, now=self._clock.now())
            if after is not before:
                self._statuses[name] = after
                self._changed()
            eager = in_grace and after.status != PASSING
            await self._clock.sleep(min(interval, _EAGER_SECONDS) if eager else interval)


class CheckKeeper:
    """The checks of all machines of a worker, from the beginning to the end of each one's run."""

    def __init__(
        self,
        clock: Clock,
        random: Random,
        tell: Callable[[str, list[MachineCheckStatus]], bool],
        *,
        probe: Probe | None = None,
    ) -> None:
        """`tell` takes a machine's id and all its checks when one has changed, and says whether it could.

        What it could not is told again, as it is by then, after `tell_again`.
        """
        self._clock = clock
        self._random = random
        self._tell = tell
        self._probe = probe
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed: dict[str, Checks] = {}
        self._wake = asyncio.Event()

    def begin(
        self, machine_id: str, spec: MachineSpec, *, age: float, known: Iterable[MachineCheckStatus] = ()
    ) -> None:
        """Check a machine that has been running for `age` seconds; `known` is what was known of it before."""
        if not (wanted := checks_of(spec)):
            return

        def changed() -> None:
            self._changed[machine_id] = checks
            self._wake.set()

        checks = Checks(
            wanted,
            changed=changed,
            clock=self._clock,
            random=self._random,
            age=age,
            known=known,
            probe=self._probe,
        )
        self.end(machine_id)
        self._tasks[machine_id] = asyncio.create_task(self._keep(checks), name=f"checks of {machine_id}")

    def end(self, machine_id: str) -> None:
        """Check a machine no more, and tell nothing more of it."""
        if (task := self._tasks.pop(machine_id, None)) is not None:
            task.cancel()
        self._changed.pop(machine_id, None)

    def tell_again(self) -> None:
        """Tell what could not be told before."""
        if self._changed:
            self._wake.set()

    async def run(self) -> Never:
        """Tell changes until cancelled, those of each machine at most once a second."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for machine_id, checks in list(self._changed.items()):
                if self._tell(machine_id, checks.statuses()):
                    del self._changed[machine_id]
            await self._clock.sleep(_TELL_SECONDS)

    async def close(self) -> None:
        """End all checks; return when none is tried any more."""
        tasks = list(self._tasks.values())
        for machine_id in list(self._tasks):
            self.end(machine_id)
        await cancel(*tasks)

    async def _keep(self, checks: Checks) -> None:
        while True:
            # Whose death is logged where it happens: a machine must not be without its checks from then on.
            with contextlib.suppress(TaskDied):
                await checks.run()
            await self._clock.sleep(_BEGIN_AGAIN_SECONDS)


async def try_once(check: CheckSpec, host: str) -> Result:
    """Try a check against `host`, within its timeout. Raises nothing."""
    timeout = _seconds(check, "timeout", _DEFAULT_TIMEOUT_SECONDS)
    where = f"{host}:{check.port}"
    try:
        async with asyncio.timeout(timeout):
            if check.type == CHECK_TYPE_HTTP:
                return await _try_http(check, host)
            _, writer = await asyncio.open_connection(host, check.port)
            writer.close()
            return Result(True, f"connected to {where}")
    except TimeoutError:
        return Result(False, f"{where} did not answer within {timeout:g} s")
    except ConnectionRefusedError:
        return Result(False, f"{where} refused the connection")
    except ssl.SSLError as error:
        return Result(False, f"{where}: TLS failed: {error.reason or error}")
    except (OSError, ValueError, OverflowError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return Result(False, f"{where}: {error or type(error).__name__}")


async def _try_http(check: CheckSpec, host: str) -> Result:
    request = _request(check, host)
    tls = _tls(check.tls_skip_verify) if check.tls else None
    reader, writer = await asyncio.open_connection(
        host,
        check.port,
        ssl=tls,
        server_hostname=(check.tls_server_name or "localhost") if tls is not None else None,
        limit=_HEAD_BYTES,
    )
    try:
        writer.write(request)
        await writer.drain()
        line = (await reader.readuntil(b"\n")).decode("latin-1").strip()
        version, _, answer = line.partition(" ")
        code = answer[:3]
        if not version.startswith("HTTP/") or not code.isdigit():
            raise ValueError("the answer is not HTTP")
        await _drain(reader)
        return Result(code.startswith("2"), f"{check.method or 'GET'} {check.path or '/'}: {answer[:100]}")
    finally:
        writer.close()


async def _drain(reader: asyncio.StreamReader) -> None:
    """Read an answer that says how long it is, so that its server is not cut off in the middle of it."""
    length = 0
    while (header := await reader.readuntil(b"\n")).strip():
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
    if 0 < length <= _DRAIN_BYTES:
        await reader.readexactly(length)


def _request(check: CheckSpec, host: str) -> bytes:
    given = [(header.name, value) for header in check.headers for value in header.values]
    names = {name.lower() for name, _ in given}
    defaults = [("Host", f"{host}:{check.port}"), ("User-Agent", "skerry-check"), ("Accept", "*/*")]
    headers = [pair for pair in defaults if pair[0].lower() not in names] + given + [("Connection", "close")]
    path = check.path if check.path.startswith("/") else f"/{check.path}"
    lines = [f"{check.method or 'GET'} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("the check's method, path or headers have a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@lru_cache(maxsize=2)
def _tls(skip_verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _seconds(check: CheckSpec, field: str, default: float) -> float:
    duration: Duration = getattr(check, field)
    return duration.ToNanoseconds() / 1e9 if check.HasField(field) and duration.ToNanoseconds() > 0 else default  # type: ignore[arg-type]
