"""What a tenant that calls at 50 times its limit changes for another, that stays within its own: pairs of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from services.cli import inside
from services.cli.benchmarks import bed
from services.cli.benchmarks.statistics import quantile
from services.cli.console import CommandError
from services.cli.mesh import CENTRAL_SYNC, HOST, Mesh
from services.cli.rest import Api

QUIET, NOISY = "quiet", "noisy"
"""The two organizations."""
APPS = 75
"""Of the quiet one, which creates in each of them less than one machine a second."""
PER_SECOND = 50.0
CALLS = 400
"""Creates of the quiet one in a run."""
TIMES = 50
"""So many times its limit the noisy one calls: creates in one app, where one in a second is allowed."""
_LIMIT_PER_SECOND = 1.0
_BEFORE_SECONDS = 1.0
"""How long the noisy one calls already when a run begins: its burst is over."""
_WARM_UP = 400
_LOWEST_PRIORITY = 19
_RUN_SECONDS = 120.0
_TOKEN_SECONDS = 30.0


@dataclass
class _Tenant:
    """How to call as an organization."""

    mesh: Mesh
    token: str
    apps: list[str]
    per_second: float
    answers: Counter[str] = field(default_factory=Counter)

    def spec(self, calls: int | None, seed: int, times: float = 1) -> str:
        """A line for the paced generator."""
        return json.dumps(
            {
                "host": HOST,
                "port": bed.door(self.mesh).rest,
                "token": self.token,
                "paths": [f"/v1/apps/{app}/machines" for app in self.apps],
                "body": json.dumps({"config": bed.WEB_CONFIG, "skip_launch": True}),
                "per_second": times * self.per_second,
                "calls": calls,
                "seed": seed,
            }
        )

    def run(self, calls: int, seed: int) -> list[float]:
        """Latencies, in ms, of so many creates, at moments that are the same for the same seed.

        Raises CommandError when one fails.
        """
        with _generator(self.spec(calls, seed)) as process:
            result = _end(process)
        if result["answers"].keys() != {"200"}:
            raise CommandError(f"a tenant within its limits was refused: {result['first_refusal']}")
        latencies: list[float] = result["latencies_ms"]
        return latencies

    @contextmanager
    def calling(self, seed: int, times: float) -> Iterator[None]:
        """Calls `times` as often as it may until the end of the block; the answers count where that is too often."""
        with _generator(self.spec(None, seed, times)) as process:
            # Its calls are what is measured, not what it takes of this machine's processors to make them.
            os.setpriority(os.PRIO_PROCESS, process.pid, _LOWEST_PRIORITY)
            time.sleep(_BEFORE_SECONDS)
            yield
            answers = _end(process)["answers"]
            if times > 1:
                self.answers.update(answers)


def bench_neighbour(pairs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run `pairs` pairs of runs of the quiet tenant: alone and beside the noisy one; and beside that one at its limit.

    Returns pairs, creates (in each run), noisy_per_second, noisy_answers (by status), p50_ms_alone, p50_ms_at_limit,
    p50_ms, p50_ratio (to alone), p50_ratio_at_limit (to that): medians over the runs, and of the ratios of the pairs;
    and the same of p99, of all runs of a kind together, since that of a single run hangs on four calls. What the noisy
    one may do costs something, too: the last ratio leaves that out.
    Raises CommandError when a create of the quiet tenant fails.
    """
    with bed.temporary_folder() as folder:
        tell("starting a set and the centre")
        with bed.mesh_in(folder) as mesh:
            quiet = _tenant(mesh, QUIET, APPS, PER_SECOND)
            noisy = _tenant(mesh, NOISY, 1, _LIMIT_PER_SECOND)
            quiet.run(min(_WARM_UP, CALLS), seed=-1)
            runs: dict[float, list[list[float]]] = {0: [], 1: [], TIMES: []}
            for number in range(pairs):
                tell(f"pair {number + 1} of {pairs}")
                # What came first is no advantage: the order changes from pair to pair.
                for times in sorted(runs, reverse=number % 2 == 1):
                    with noisy.calling(pairs + number, times) if times else nullcontext():
                        runs[times].append(quiet.run(CALLS, seed=number))
    figures: dict[str, Any] = {
        "pairs": pairs,
        "creates": CALLS,
        "noisy_per_second": TIMES * _LIMIT_PER_SECOND,
        "noisy_answers": dict(sorted(noisy.answers.items())),
    }
    together = {times: [[latency for run in runs[times] for latency in run]] for times in runs}
    for label, part, samples in (("p50", 0.5, runs), ("p99", 0.99, together)):
        alone, at_limit, beyond = ([quantile(sample, part) for sample in samples[times]] for times in sorted(samples))
        figures[f"{label}_ms_alone"] = round(median(alone), 3)
        figures[f"{label}_ms_at_limit"] = round(median(at_limit), 3)
        figures[f"{label}_ms"] = round(median(beyond), 3)
        figures[f"{label}_ratio"] = round(median(b / a for a, b in zip(alone, beyond, strict=True)), 3)
        figures[f"{label}_ratio_at_limit"] = round(median(b / a for a, b in zip(at_limit, beyond, strict=True)), 3)
    return figures


def _tenant(mesh: Mesh, organization: str, apps: int, per_second: float) -> _Tenant:
    """A new organization at the centre, with a token that its region knows, and so many apps."""
    import httpx

    mutation = (
        "mutation($input: CreateOrganizationInput!) { createOrganization(input: $input) { organization { id } } }"
    )
    answer = httpx.post(
        f"{mesh.central_urls[0]}/graphql",
        json={"query": mutation, "variables": {"input": {"name": organization, "slug": organization}}},
        headers={"authorization": f"Bearer {mesh.central_secret('central-token')}"},
        timeout=10,
    ).json()
    if answer.get("errors"):
        raise CommandError(f"the centre made no organization: {answer['errors'][0]['message']}")
    api = Api.of(mesh.directory, bed.REGION)
    names = [f"{organization}-{number}" for number in range(apps)]
    for name in names:
        api.call("POST", "apps", body={"name": name, "org_slug": organization})
    token = inside.ask(mesh, bed.REGION, lambda channel: _new_token(channel, organization), of=CENTRAL_SYNC)
    _wait_until_known(mesh, names[0], token)
    return _Tenant(mesh, token, names, per_second)


async def _new_token(channel: Any, organization: str) -> str:
    from skerry.sync.v1.sync_pb2 import CreateTokenRequest
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub

    stub: Any = CentralSyncStub(channel)
    made = await stub.CreateToken(CreateTokenRequest(organization_slug=organization, scope="all"), timeout=10)
    return str(made.token)


def _wait_until_known(mesh: Mesh, app: str, token: str) -> None:
    """The region learns of keys, organizations and apps from the catalog. Raises CommandError when it does not."""
    import httpx

    url = f"http://{HOST}:{bed.door(mesh).rest}/v1/apps/{app}"
    end = time.monotonic() + _TOKEN_SECONDS
    while (status := httpx.get(url, headers={"authorization": f"Bearer {token}"}, timeout=10).status_code) != 200:
        if time.monotonic() > end:
            raise CommandError(f"the region does not know a new token after {_TOKEN_SECONDS:g} s: it answers {status}")
        time.sleep(0.3)


@contextmanager
def _generator(spec: str) -> Iterator[subprocess.Popen[str]]:
    """A paced generator that runs; it is killed at the end of the block if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "services.cli.benchmarks.paced"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None, "it was asked for"
        process.stdin.write(spec + "\n")
        process.stdin.flush()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Tell a generator that nothing more is wanted; its result. Raises CommandError with its words."""
    out, err = process.communicate(timeout=_RUN_SECONDS)
    if process.returncode != 0:
        raise CommandError(f"the load generator failed: {(err.strip().splitlines() or ['no reason given'])[-1]}")
    result: dict[str, Any] = json.loads(out)
    return result
