from __future__ import annotations

import pytest
from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.spec_pb2 import (
    MACHINE_FIELD_APP_NAME,
    MACHINE_FIELD_ID,
    MACHINE_FIELD_IMAGE,
    MACHINE_FIELD_PRIVATE_IP,
    MACHINE_FIELD_REGION,
    MACHINE_FIELD_VERSION,
    ImageSpec,
)

from services.worker.drivers.commands import Command, commands_of, image_reference, spec_with_files
from services.worker.drivers.driver import Assignment, CannotRun

IMAGES = {"nginx": ["serve"], "acme/api": ["api"], "acme/api:2": ["api2"], "registry.example/acme/api": ["theirs"]}


def record() -> MachineRecord:
    record = MachineRecord(
        id="00112233445566", app_name="demo", instance_id="v1", metadata={"fly_process_group": "web"}
    )
    record.spec.image.CopyFrom(ImageSpec(registry="docker.io", repository="library/nginx", tag="1"))
    record.spec.guest.memory_bytes = 256 << 20
    return record


def commands(record: MachineRecord, **secrets: str) -> list[Command]:
    assignment = Assignment(record, "syd", "fdaa:0:1:2:3:4:5:6", fresh=False, secrets=secrets)
    return commands_of(assignment, IMAGES, root="/data/root", search_path="/bin")


def words(record: MachineRecord) -> list[tuple[str, ...]]:
    return [command.words for command in commands(record)]


def test_exec_replaces_entrypoint_and_cmd_which_replace_the_image() -> None:
    machine = record()
    assert words(machine) == [("serve",)]
    machine.spec.init.cmd.extend(["c"])
    assert words(machine) == [("c",)]
    machine.spec.init.entrypoint.extend(["e", "f"])
    assert words(machine) == [("e", "f", "c")]
    machine.spec.init.exec.extend(["x"])
    assert words(machine) == [("x",)]


def test_every_process_has_its_own_command_and_environment() -> None:
    machine = record()
    machine.spec.env.variables.update({"A": "machine", "B": "machine"})
    machine.spec.processes.processes.add(exec=["one"], env={"A": "process"}, user="nobody")
    second = machine.spec.processes.processes.add(entrypoint=["two"], cmd=["arg"])
    second.env_from.update({"ID": MACHINE_FIELD_ID, "V": MACHINE_FIELD_VERSION, "APP": MACHINE_FIELD_APP_NAME})
    second.env_from.update({"IP": MACHINE_FIELD_PRIVATE_IP, "R": MACHINE_FIELD_REGION, "I": MACHINE_FIELD_IMAGE})
    machine.spec.processes.processes.add()
    one, two, three = commands(machine)
    assert (one.words, one.user, one.environment["A"], one.environment["B"]) == (
        ("one",),
        "nobody",
        "process",
        "machine",
    )
    facts = {name: two.environment[name] for name in ("ID", "V", "APP", "IP", "R", "I")}
    assert facts == {
        "ID": "00112233445566",
        "V": "v1",
        "APP": "demo",
        "IP": "fdaa:0:1:2:3:4:5:6",
        "R": "syd",
        "I": "docker.io/library/nginx:1",
    }
    assert two.words == ("two", "arg")
    assert three.words == ("serve",)


def test_the_environment_says_who_the_machine_is_and_the_machine_cannot_say_otherwise() -> None:
    machine = record()
    machine.spec.env.variables.update({"FLY_MACHINE_ID": "forged", "PATH": "/own", "HOME": "/own", "EMPTY": ""})
    (command,) = commands(machine)
    assert command.environment == {
        "MACHINE_ROOT": "/data/root",
        "HOME": "/own",
        "PATH": "/own",
        "EMPTY": "",
        "FLY_APP_NAME": "demo",
        "FLY_MACHINE_ID": "00112233445566",
        "FLY_ALLOC_ID": "00112233445566",
        "FLY_MACHINE_VERSION": "v1",
        "FLY_REGION": "syd",
        "FLY_IMAGE_REF": "docker.io/library/nginx:1",
        "FLY_VM_MEMORY_MB": "256",
        "FLY_PRIVATE_IP": "fdaa:0:1:2:3:4:5:6",
        "FLY_PROCESS_GROUP": "web",
    }
    assert "forged" not in repr(command)


@pytest.mark.parametrize(
    ("image", "command"),
    [
        (ImageSpec(registry="docker.io", repository="library/nginx", tag="latest"), "serve"),
        (ImageSpec(registry="docker.io", repository="acme/api", tag="1"), "api"),
        (ImageSpec(registry="docker.io", repository="acme/api", tag="2", digest="sha256:00"), "api2"),
        (ImageSpec(registry="registry.example", repository="acme/api", tag="1"), "theirs"),
    ],
)
def test_an_image_is_found_under_its_most_precise_name(image: ImageSpec, command: str) -> None:
    machine = record()
    machine.spec.image.CopyFrom(image)
    assert words(machine) == [(command,)]


def test_an_image_that_is_not_listed_is_refused_with_advice() -> None:
    machine = record()
    machine.spec.image.CopyFrom(ImageSpec(registry="docker.io", repository="acme/web", tag="1"))
    with pytest.raises(
        CannotRun, match=r"image docker.io/acme/web:1 names no command.*config\.init\.exec.*process\.images"
    ):
        commands(machine)


def test_what_the_driver_cannot_do_is_refused_by_name() -> None:
    containers = record()
    containers.spec.containers.containers.add(name="side")
    with pytest.raises(CannotRun, match="runs no containers"):
        commands(containers)
    secret_file = record()
    secret_file.spec.files.files.add(path="/a", content=b"")
    secret_file.spec.files.files.add(path="/b", secret_name="KEY")
    with pytest.raises(
        CannotRun, match=r"config\.files\[1\]\.secret_name names the secret KEY, which the app demo does not"
    ):
        commands(secret_file)
    secret_env = record()
    secret_env.spec.processes.processes.add(exec=["x"], secrets={"VARIABLE": "KEY"})
    with pytest.raises(
        CannotRun, match=r"config\.processes\[0\]\.secrets names the secret KEY, which the app demo does not"
    ):
        commands(secret_env)
    image_file = record()
    image_file.spec.files.files.add(path="/a", image_config="x")
    with pytest.raises(CannotRun, match=r"config\.files\[0\] is made from an image"):
        commands(image_file)


def test_image_references_are_written_as_people_write_them() -> None:
    assert (
        image_reference(ImageSpec(registry="r:5000", repository="a/b", tag="t", digest="sha256:1"))
        == "r:5000/a/b:t@sha256:1"
    )
    assert image_reference(ImageSpec(registry="r", repository="a", digest="sha256:1")) == "r/a@sha256:1"


# Secrets


def test_secrets_of_the_app_come_over_env_and_never_over_what_a_machine_is_told_of_itself() -> None:
    machine = record()
    machine.spec.env.variables.update({"A": "config", "B": "config"})
    (command,) = commands(machine, A="secret", FLY_REGION="secret", PATH="/secret", C="secret")
    env = command.environment
    assert (env["A"], env["B"], env["C"], env["PATH"]) == ("secret", "config", "secret", "/secret")
    assert env["FLY_REGION"] == "syd"
    assert "secret" not in repr(command)


def test_a_machine_that_skips_secrets_gets_only_those_that_it_names() -> None:
    machine = record()
    machine.spec.secrets.skip = True
    machine.spec.processes.processes.add(exec=["x"], secrets={"URL": "A"})
    (command,) = commands(machine, A="secret-a", B="secret-b")
    assert command.environment["URL"] == "secret-a"
    assert not {"A", "B"} & command.environment.keys()
    plain = record()
    plain.spec.secrets.skip = True
    plain.spec.init.exec.extend(["x"])
    assert "A" not in commands(plain, A="secret-a")[0].environment


def test_a_process_can_do_without_the_apps_secrets_and_take_some_under_other_names() -> None:
    machine = record()
    machine.spec.env.variables.update({"A": "machine"})
    machine.spec.processes.processes.add(exec=["x"], env={"A": "process"})
    machine.spec.processes.processes.add(
        exec=["x"], env={"A": "process"}, ignore_app_secrets=True, secrets={"URL": "A", "B": "B"}
    )
    all_of_them, few = (command.environment for command in commands(machine, A="secret-a", B="secret-b", C="secret-c"))
    assert [all_of_them[name] for name in "ABC"] == ["secret-a", "secret-b", "secret-c"]
    assert (few["A"], few["URL"], few["B"]) == ("process", "secret-a", "secret-b")
    assert "C" not in few


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("aGVsbG8=", b"hello"),
        ("aGVs\nbG8=\n", b"hello"),
        ("hello world!", b"hello world!"),
        ("gr\u00fc\u00df", "gr\u00fc\u00df".encode()),
        ("aGVsbG8", b"aGVsbG8"),
        ("", b""),
    ],
)
def test_a_file_that_is_a_secret_is_decoded_where_it_is_base64(value: str, content: bytes) -> None:
    machine = record()
    machine.spec.files.files.add(path="/a", content=b"plain", mode=0o600)
    machine.spec.files.files.add(path="/b", secret_name="KEY", mode=0o400)
    assignment = Assignment(machine, "syd", "fdaa::1", fresh=False, secrets={"KEY": value})
    whole = spec_with_files(assignment)
    assert [file.content for file in whole.files.files] == [b"plain", content]
    assert whole.files.files[1].mode == 0o400
    assert machine.spec.files.files[1].secret_name == "KEY"
    assert "KEY" not in str(whole.files)
    assert value not in repr(assignment) or not value
