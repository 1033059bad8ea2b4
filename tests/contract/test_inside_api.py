"""Commands, processes and signals inside machines that run, over REST and gRPC, against a region with real workers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from skerry.machines.v1 import machines_pb2 as api

from gateway.rest.openapi import document
from services.runtime.errors import InvalidConfig, WrongState
from services.worker.drivers.shim import start_time
from tests.support import eventually
from tests.support_gateway import ELSEWHERE, TOKEN, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEARER = (("authorization", f"Bearer {TOKEN}"),)


async def sleeping(region: TestRegion, app: str, **env: str) -> str:
    """The path of a machine that runs `sleep`."""
    config = {"image": "busybox", "init": {"exec": ["/bin/sleep", "3600"]}, "env": env}
    machine = await region.machine(app, config=config, skip_launch=False)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    assert (await region.call("GET", f"{path}/wait?state=started&timeout=20")).status == 200
    return path


async def run(region: TestRegion, path: str, cmd: str, **more: Any) -> Any:
    answer = await region.call("POST", f"{path}/exec", {"cmd": cmd, **more})
    assert answer.status == 200, answer
    return answer.json


async def test_a_command_runs_in_the_machines_environment_and_root(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app(), A="to you")
    ran = await run(lively_region, path, 'echo hello $A; test "$PWD" = "$MACHINE_ROOT" && echo at home', timeout=5)
    assert ran == {"exit_code": 0, "stdout": "hello to you\nat home\n", "stderr": ""}


async def test_a_command_answers_its_status_its_complaints_and_what_it_read(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    ran = await run(lively_region, path, "cat; echo oh no >&2; exit 3", stdin="read this")
    assert ran == {"exit_code": 3, "stdout": "read this", "stderr": "oh no\n"}


async def test_a_command_that_takes_too_long_is_killed_with_all_it_has_started(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    ran = await run(lively_region, path, "sleep 3599 & echo $!; sleep 3599", timeout=1)
    assert ran["exit_code"] == 137
    assert ran["stderr"] == "the command was killed: it was not done within its timeout of 1 s\n"
    # A process that is killed closes its files, which ends the command's outputs, a moment before it is gone.
    await eventually(lambda: start_time(int(ran["stdout"])) == 0)


async def test_a_command_ends_with_its_machine_and_blames_no_timeout(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    running = asyncio.create_task(run(lively_region, path, "touch begun; sleep 3598", timeout=50))

    async def has_begun() -> bool:
        return bool((await run(lively_region, path, "test -e begun"))["exit_code"] == 0)

    await eventually(has_begun)
    assert (await lively_region.call("POST", f"{path}/signal", {"signal": 9})).status == 200
    ran = await running
    assert (ran["exit_code"], ran["stderr"]) == (137, "")


async def test_output_that_is_cut_is_marked_and_the_command_ends_by_itself(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    ran = await run(lively_region, path, "yes | head -c 5000000")
    assert ran == {"exit_code": 0, "stdout": "y\n" * (1 << 19), "stderr": "", "stdout_truncated": True}
    ran = await run(lively_region, path, "yes | head -c 5000000 >&2; exit 3")
    assert ran == {"exit_code": 3, "stdout": "", "stderr": "y\n" * (1 << 19), "stderr_truncated": True}


async def test_an_answer_that_is_whole_has_no_word_of_cuts(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    answer = await lively_region.call("POST", f"{path}/exec", {"cmd": "yes | head -c 1048576; echo oh no >&2"})
    assert answer.json == {"exit_code": 0, "stdout": "y\n" * (1 << 19), "stderr": "oh no\n"}
    headers = {"authorization": f"Bearer {TOKEN}"}
    raw = await lively_region.rest.request("POST", f"{path}/exec", json={"cmd": "echo hi"}, headers=headers, timeout=30)
    assert raw.content == b'{"exit_code":0,"stdout":"hi\\n","stderr":""}'


async def test_the_description_of_the_api_has_the_marks_of_cut_output_as_optional() -> None:
    described = document()["components"]["schemas"]["ExecMachineResponse"]
    assert described["required"] == ["exit_code", "stdout", "stderr"]
    for mark in ("stdout_truncated", "stderr_truncated"):
        assert described["properties"][mark]["type"] == "boolean"


async def test_processes_are_listed_as_a_bare_array_in_the_wanted_order(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    config = {"image": "busybox", "init": {"exec": ["/bin/sh", "-c", "sleep 3598 & sleep 3599"]}}
    machine = await lively_region.machine(app, config=config, skip_launch=False)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    assert (await lively_region.call("GET", f"{path}/wait?state=started&timeout=20")).status == 200

    async def three() -> Any:
        stats = (await lively_region.call("GET", f"{path}/ps")).json
        return stats if len(stats) == 3 else None

    stats = await eventually(three)
    assert {stat["command"] for stat in stats} == {"/bin/sh -c sleep 3598 & sleep 3599", "sleep 3598", "sleep 3599"}
    assert [stat["pid"] for stat in stats] == sorted(stat["pid"] for stat in stats)
    assert all(
        set(stat) == {"pid", "stime", "rtime", "command", "directory", "cpu", "rss", "listen_sockets"} for stat in stats
    )
    assert all(stat["rss"] > 0 and stat["directory"].endswith("/root") for stat in stats)
    backwards = (await lively_region.call("GET", f"{path}/ps?sort_by=command&order=desc")).json
    assert [stat["command"] for stat in backwards] == sorted((stat["command"] for stat in stats), reverse=True)


async def test_a_socket_that_is_listened_on_is_shown_with_its_process(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    code = "import socket,time; s=socket.create_server(('127.0.0.1',0)); time.sleep(3600)"
    config = {"image": "busybox", "init": {"exec": ["python3", "-c", code]}}
    machine = await lively_region.machine(app, config=config, skip_launch=False)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    assert (await lively_region.call("GET", f"{path}/wait?state=started&timeout=20")).status == 200

    async def listens() -> Any:
        return (await lively_region.call("GET", f"{path}/ps")).json[0]["listen_sockets"]

    (socket,) = await eventually(listens)
    assert socket["proto"] == "tcp"
    assert socket["address"].startswith("127.0.0.1:")


@pytest.mark.parametrize("signal", ["SIGKILL", "9", 9])
async def test_a_signal_is_sent_by_name_or_by_number(lively_region: TestRegion, signal: str | int) -> None:
    app = await lively_region.app()
    config = {"image": "busybox", "init": {"exec": ["/bin/sleep", "3600"]}, "restart": {"policy": "no"}}
    machine = await lively_region.machine(app, config=config, skip_launch=False)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    assert (await lively_region.call("GET", f"{path}/wait?state=started&timeout=20")).status == 200
    answer = await lively_region.call("POST", f"{path}/signal", {"signal": signal})
    assert (answer.status, answer.json) == (200, {"ok": True})
    version = machine["instance_id"]
    waited = await lively_region.call("GET", f"{path}/wait?state=stopped&instance_id={version}&timeout=20")
    assert waited.status == 200
    events = (await lively_region.call("GET", f"{path}/events")).json
    assert events[0]["request"]["exit_event"]["signal"] == 9


async def test_a_leased_machine_takes_signals_from_the_holder_alone(lively_region: TestRegion) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    lease = (await lively_region.call("POST", f"{path}/lease?ttl=60")).json["data"]
    refused = await lively_region.call("POST", f"{path}/signal", {"signal": "SIGCONT"})
    assert (refused.status, refused.json["status"]) == (409, "lease_held")
    headers = {"fly-machine-lease-nonce": lease["nonce"]}
    answer = await lively_region.call("POST", f"{path}/signal", {"signal": "SIGCONT"}, headers=headers)
    assert answer.status == 200, answer


async def test_a_machine_that_does_not_run_has_no_inside(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    machine = await lively_region.machine(app)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    for verb, where, body in (
        ("POST", "exec", {"cmd": "true"}),
        ("GET", "ps", None),
        ("POST", "signal", {"signal": "SIGTERM"}),
    ):
        answer = await lively_region.call(verb, f"{path}/{where}", body)
        assert (answer.status, answer.json["status"]) == (409, "wrong_state"), where
        assert "is created" in answer.json["error"]
    with pytest.raises(WrongState):
        await lively_region.machines.ExecMachine(
            api.ExecMachineRequest(app_name=app, machine_id=machine["id"], cmd="true"), metadata=BEARER
        )


@pytest.mark.parametrize(
    ("verb", "where", "body", "field"),
    [
        ("POST", "exec", {}, "cmd"),
        ("POST", "exec", {"cmd": "true", "timeout": 61}, "timeout"),
        ("POST", "exec", {"cmd": "true", "container": "web"}, "container"),
        ("GET", "ps?sort_by=nonsense", None, "sort_by"),
        ("GET", "ps?order=up", None, "order"),
        ("POST", "signal", {"signal": "SIGNONSENSE"}, "signal"),
        ("POST", "signal", {"signal": 0}, "signal"),
        ("POST", "signal", {}, "signal"),
    ],
)
async def test_a_wrong_request_names_the_field(
    lively_region: TestRegion, verb: str, where: str, body: Any, field: str
) -> None:
    path = await sleeping(lively_region, await lively_region.app())
    answer = await lively_region.call(verb, f"{path}/{where}", body)
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert answer.json["error"].startswith(field)


async def test_grpc_answers_the_same_as_rest(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    machine_id = (await sleeping(lively_region, app)).rpartition("/")[2]
    machines = lively_region.machines
    ran = await machines.ExecMachine(
        api.ExecMachineRequest(app_name=app, machine_id=machine_id, cmd="echo hi"), metadata=BEARER
    )
    assert (ran.exit_code, ran.stdout, ran.stdout_truncated, ran.stderr_truncated) == (0, "hi\n", False, False)
    cut = await machines.ExecMachine(
        api.ExecMachineRequest(app_name=app, machine_id=machine_id, cmd="yes | head -c 5000000"), metadata=BEARER
    )
    assert (cut.exit_code, cut.stdout_truncated, cut.stderr_truncated) == (0, True, False)
    listed = await machines.ListProcesses(
        api.ListProcessesRequest(app_name=app, machine_id=machine_id), metadata=BEARER
    )
    assert [stat.command for stat in listed.processes] == ["/bin/sleep 3600"]
    with pytest.raises(InvalidConfig):
        await machines.SignalMachine(
            api.SignalMachineRequest(app_name=app, machine_id=machine_id, signal="x"), metadata=BEARER
        )


async def test_a_worker_that_cannot_be_reached_is_named(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    config = {"image": "busybox", "guest": {"host_dedication_id": ELSEWHERE}}
    machine = await lively_region.machine(app, config=config, skip_launch=False)
    await lively_region.worker.started(machine["id"])
    answer = await lively_region.call("POST", f"/v1/apps/{app}/machines/{machine['id']}/exec", {"cmd": "true"})
    assert (answer.status, answer.json["status"]) == (503, "dependency_down")
    assert "worker worker-1 cannot be reached" in answer.json["error"]
    assert "retry-after" in answer.headers
