import json
import stat
from pathlib import Path
from random import Random

import pytest

from services.cli.mesh import CENTRAL, GATEWAY, SET, WORKER, Mesh, MeshError, default_directory, remember
from services.cli.ports import ephemeral_start
from services.runtime.regions import RegionMap


def test_a_new_mesh_has_one_region_with_one_process(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path)
    assert mesh.regions == ("syd",)
    assert [process.name for process in mesh.processes("syd")] == ["set-1"]
    assert mesh.workers_are_within
    assert mesh.workers == 2


def test_a_mesh_that_is_opened_again_keeps_its_ports_token_and_secret(tmp_path: Path) -> None:
    first = Mesh.prepare(tmp_path, regions=["syd", "iad"])
    again = Mesh.prepare(tmp_path)
    assert again.regions == ("syd", "iad")
    assert [again.processes(region) for region in again.regions] == [
        first.processes(region) for region in first.regions
    ]
    assert (again.token, again.secret) == (first.token, first.secret)
    assert first.token != first.secret


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path)
    mesh.write_endpoints({})
    for name in ("token", "secret", "endpoints.json", "mesh.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name


def test_every_port_lies_below_the_ephemeral_range_and_belongs_to_one_process(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, regions=["syd", "iad", "fra"], sets=2, workers=3)
    ports = [port for region in mesh.regions for process in mesh.processes(region) for port in process.served_ports]
    assert len(ports) == len(set(ports)) == 3 * (2 * 4 + 3 * 2)
    assert max(ports) < ephemeral_start()


def test_with_sets_the_workers_are_processes_of_their_own(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, sets=2, workers=1)
    assert [process.name for process in mesh.processes("syd")] == ["set-1", "set-2", "worker-1"]
    assert not mesh.workers_are_within
    assert len(mesh.addresses("syd", "machine-store")) == 2


def test_apart_every_service_has_one_process(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, apart=True, workers=2)
    names = [process.name for process in mesh.processes("syd")]
    services = ["machine-store-1", "central-sync-1", "config-converter-1", "scheduler-1", "gateway-1"]
    assert names == [*services, "worker-1", "worker-2"]
    assert len(mesh.addresses("syd", "scheduler")) == 1
    assert len(mesh.addresses("syd", WORKER)) == 2


def test_regions_can_be_added_and_get_cells_of_their_own(tmp_path: Path) -> None:
    Mesh.prepare(tmp_path, regions=["syd"])
    mesh = Mesh.prepare(tmp_path, regions=["iad"])
    assert [mesh.cell(region) for region in mesh.regions] == ["001", "002"]


def test_the_region_map_names_the_gateways_of_every_cell(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, regions=["syd", "xyz"], sets=2)
    regions = RegionMap.load(mesh.region_map)
    assert regions.region("syd").cells[0].gateways == tuple(
        f"127.0.0.1:{process.grpc}" for process in mesh.processes("syd") if process.has_gateway
    )
    assert regions.region_of_cell("002").code == "xyz"


@pytest.mark.parametrize(("option", "number"), [("sets", 3), ("workers", 5)])
def test_other_numbers_than_those_of_the_dir_are_refused(tmp_path: Path, option: str, number: int) -> None:
    Mesh.prepare(tmp_path)
    with pytest.raises(MeshError, match=f"--{option}"):
        Mesh.prepare(tmp_path, **{option: number})  # type: ignore[arg-type]


@pytest.mark.parametrize("code", ["", "S", "sydney australia", "../up", "a" * 13])
def test_a_code_that_cannot_be_a_region_is_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(MeshError, match="cannot be a region"):
        Mesh.prepare(tmp_path, regions=[code])


def test_a_dir_without_a_mesh_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"skerry up --dir"):
        Mesh.open(tmp_path)


def test_an_extra_process_gets_ports_that_stay_its_own(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, random=Random(1))
    extra = mesh.process("syd", GATEWAY)
    assert Mesh.open(tmp_path).process("syd", GATEWAY) == extra
    assert not set(extra.served_ports) & set(mesh.process("syd", SET).served_ports)


def test_endpoints_name_the_doors_of_each_region_and_the_pids_that_run(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, regions=["syd", "iad"])
    [process], [centre] = mesh.processes("syd"), mesh.processes(CENTRAL)
    document = json.loads(mesh.write_endpoints({process: 42, centre: 43}).read_text())
    assert document == {
        "regions": {
            region: {
                "rest": f"http://127.0.0.1:{mesh.processes(region)[0].rest}",
                "grpc": f"127.0.0.1:{mesh.processes(region)[0].grpc}",
            }
            for region in ("syd", "iad")
        },
        "central": {"graphql": f"http://127.0.0.1:{centre.rest}/graphql"},
        "token": mesh.token,
        "pids": {"syd": 42, "central": 43},
    }


def test_an_instance_of_the_centre_is_no_region(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="cannot be a region"):
        Mesh.prepare(tmp_path, regions=[CENTRAL])


def test_instances_of_the_centre_each_have_a_release_and_a_url_of_their_own(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path)
    mesh.set_central_instances(2)
    mesh.set_central_release(2, "2")
    assert Mesh.open(tmp_path).central_releases == ("1", "2")
    assert len(set(mesh.central_urls)) == 2


def test_the_plan_of_a_mesh_cannot_be_asked_for_again_otherwise(tmp_path: Path) -> None:
    assert Mesh.prepare(tmp_path).plan == "local"
    with pytest.raises(MeshError, match="--plan local"):
        Mesh.prepare(tmp_path, plan="central")


def test_endpoints_with_sets_name_each_of_them(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, sets=2)
    first, second, *_ = mesh.processes("syd")
    region = mesh.endpoints({first: 1, second: 2})["regions"]["syd"]
    assert [entry["pid"] for entry in region["sets"]] == [1, 2]
    assert region["rest"] == region["sets"][0]["rest"]


def test_the_last_up_is_the_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_directory().name == "default"
    Mesh.prepare(tmp_path / "mine")
    remember(tmp_path / "mine")
    assert default_directory() == tmp_path / "mine"
