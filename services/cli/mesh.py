"""What a DIR holds: which processes a mesh consists of, their ports, its secrets, its region map and its endpoints.

```
DIR/mesh.json        the plan: regions, processes, ports
DIR/regions.toml     the region map that every process reads
DIR/endpoints.json   where to find it all, for clients
DIR/token, secret    the development token; what the services of a set show one another
DIR/central-token, central-key, central-gateway-token
                     what regions show the centre; the centre's key of secrets; what it shows at gateways
DIR/<region>/        postgres/, workers/<worker>/, secrets-keys and <process>.log
DIR/central/         the same for the centre
```
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self, cast

from services.cli import ports

SET = "set"
GATEWAY = "gateway"
CONFIG_CONVERTER = "config-converter"
MACHINE_STORE = "machine-store"
SCHEDULER = "scheduler"
WORKER = "worker"
CENTRAL_SYNC = "central-sync"
CENTRAL = "central"
"""The centre: a service, and where a mesh keeps it, beside the regions."""
CENTRAL_CELL = "000"
"""No cell of any region."""
SINGLE_SERVICES: tuple[str, ...] = (MACHINE_STORE, CENTRAL_SYNC, CONFIG_CONVERTER, SCHEDULER, GATEWAY, WORKER)
"""What can be a process of its own beside a set, in the order in which they are best started."""

CENTRAL_SECRETS = ("central-token", "central-key", "central-gateway-token")
"""Files of DIR: what regions show the centre, its key of secrets at rest, and what it shows at gateways; hex digits."""

SECRETS_KEYS = "secrets-keys"
"""File of a region's directory: its keys for secrets of apps at rest, in hex, a line each; the first one seals."""

HOST = "127.0.0.1"
DEFAULT_WORKERS = 2
ZONES = 2
MOST_CELLS = 0xFFF
_VERSION = 2
_PORTS_EACH = 4

_REGIONS: Mapping[str, tuple[str, float, float]] = {
    "ams": ("Amsterdam, Netherlands", 52.37, 4.90),
    "arn": ("Stockholm, Sweden", 59.33, 18.07),
    "bom": ("Mumbai, India", 19.08, 72.88),
    "cdg": ("Paris, France", 48.86, 2.35),
    "dfw": ("Dallas, Texas (US)", 32.78, -96.80),
    "ewr": ("Secaucus, New Jersey (US)", 40.79, -74.06),
    "fra": ("Frankfurt, Germany", 50.11, 8.68),
    "gru": ("Sao Paulo, Brazil", -23.55, -46.63),
    "iad": ("Ashburn, Virginia (US)", 39.04, -77.49),
    "jnb": ("Johannesburg, South Africa", -26.20, 28.05),
    "lax": ("Los Angeles, California (US)", 34.05, -118.24),
    "lhr": ("London, United Kingdom", 51.51, -0.13),
    "nrt": ("Tokyo, Japan", 35.68, 139.69),
    "ord": ("Chicago, Illinois (US)", 41.88, -87.63),
    "sin": ("Singapore", 1.35, 103.82),
    "sjc": ("San Jose, California (US)", 37.34, -121.89),
    "syd": ("Sydney, Australia", -33.87, 151.21),
    "yyz": ("Toronto, Canada", 43.65, -79.38),
}
_CODE = re.compile(r"[a-z][a-z0-9]{1,11}")


class MeshError(Exception):
    """A DIR, or what is asked of it, is not right; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a mesh: the `instance`th (from 1) of `service` in `region`, and its ports on the loopback address.

    `rest` and `grpc` are the public doors, of processes with a gateway; `internal` is where the services of the set
    listen for one another; `metrics` is for Prometheus.
    """

    region: str
    service: str
    instance: int
    internal: int
    metrics: int
    rest: int
    grpc: int

    @property
    def name(self) -> str:
        """Its name in the region: "set-1"."""
        return f"{self.service}-{self.instance}"

    @property
    def has_gateway(self) -> bool:
        """Whether the public ports are served."""
        return self.service in (SET, GATEWAY)

    @property
    def is_central(self) -> bool:
        """It is an instance of the centre, which serves HTTP at `rest` and nothing else but metrics."""
        return self.service == CENTRAL

    @property
    def served_ports(self) -> tuple[int, ...]:
        """The ports that it listens on."""
        if self.is_central:
            return (self.rest, self.metrics)
        doors = (self.rest, self.grpc) if self.has_gateway else ()
        return (*doors, self.internal, self.metrics)


class Mesh:
    """A DIR and the plan in it. Make one with `open` or `prepare`."""

    def __init__(self, directory: Path, document: dict[str, Any]) -> None:
        self.directory = directory
        self._document = document

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The mesh that DIR holds. Raises MeshError when it holds none."""
        path = directory / "mesh.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MeshError(f"{directory} holds no mesh: `skerry up --dir {directory}` makes one") from None
        except (OSError, ValueError) as error:
            raise MeshError(f"{path} cannot be read: {error}") from error
        if document.get("version") != _VERSION:
            raise MeshError(f"{path} is of another version of skerry: use that one, or another --dir")
        return cls(directory, document)

    @classmethod
    def prepare(
        cls,
        directory: Path,
        *,
        regions: Sequence[str] | None = None,
        sets: int | None = None,
        workers: int | None = None,
        otlp: str | None = None,
        plan: str | None = None,
        apart: bool = False,
        random: Random | None = None,
    ) -> Self:
        """The mesh of DIR, made or extended as asked. What is None stays as DIR has it, or gets its default.

        `regions` are added, never taken away. `apart` puts every service in a process of its own. `plan` says who
        converts at first: "local" or "central". Raises MeshError when DIR was made with another plan or other numbers
        of sets or workers: processes and machines depend on them.
        """
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        random = random or Random()
        if (directory / "mesh.json").exists():
            mesh = cls.open(directory)
            mesh._insist("sets", sets)
            mesh._insist("workers", workers)
            mesh._insist("plan", plan)
        else:
            document: dict[str, Any] = {
                "version": _VERSION,
                "wiring": "apart" if apart else "set",
                "sets": sets,
                "workers": DEFAULT_WORKERS if workers is None else workers,
                "plan": plan or "local",
                "otlp": None,
                "central": {"cell": CENTRAL_CELL, "releases": ["1"], "ports": {}},
                "regions": {},
            }
            mesh = cls(directory, document)
            mesh.process(CENTRAL, CENTRAL)
            regions = regions or ["syd"]
        if otlp is not None:
            mesh._document["otlp"] = otlp
        for code in regions or ():
            mesh._add_region(code, random)
        mesh._write()
        return mesh

    @property
    def regions(self) -> tuple[str, ...]:
        """Codes of its regions, in the order of their cells."""
        return tuple(self._document["regions"])

    @property
    def sets(self) -> int | None:
        """Set processes a region, when a number was asked for: workers are then processes of their own."""
        sets: int | None = self._document["sets"]
        return sets

    @property
    def workers(self) -> int:
        """Workers a region."""
        return int(self._document["workers"])

    @property
    def otlp(self) -> str | None:
        """Where traces go."""
        endpoint: str | None = self._document["otlp"]
        return endpoint

    @property
    def is_apart(self) -> bool:
        """Every service has a process of its own."""
        return bool(self._document["wiring"] == "apart")

    @property
    def workers_are_within(self) -> bool:
        """Workers live in the region's one set process."""
        return not self.is_apart and self.sets is None

    @property
    def plan(self) -> str:
        """Who converts in a new region: "local" or "central"."""
        return str(self._document["plan"])

    @property
    def central_releases(self) -> tuple[str, ...]:
        """The release that each instance of the centre runs."""
        return tuple(self._document["central"]["releases"])

    def set_central_release(self, instance: int, release: str) -> None:
        """Let the `instance`th (from 1) instance of the centre run `release` from its next start."""
        self._document["central"]["releases"][instance - 1] = release
        self._write()

    def set_central_instances(self, count: int) -> None:
        """Let the centre consist of `count` instances, which all run the release of the first."""
        self._document["central"]["releases"] = [self.central_releases[0]] * count
        self._write()

    @property
    def central_urls(self) -> tuple[str, ...]:
        """Base URLs of the instances of the centre."""
        return tuple(f"http://{HOST}:{process.rest}" for process in self.processes(CENTRAL))

    @property
    def token(self) -> str:
        """The development token, which may do everything."""
        return (self.directory / "token").read_text().strip()

    @property
    def secret(self) -> str:
        """What services of the mesh show one another."""
        return (self.directory / "secret").read_text().strip()

    def central_secret(self, name: str) -> str:
        """One of CENTRAL_SECRETS."""
        return (self.directory / name).read_text().strip()

    def secrets_keys(self, region: str) -> list[str]:
        """The keys of `region` for secrets of apps, in hex; the first one seals."""
        return (self.region_directory(region) / SECRETS_KEYS).read_text().split()

    @property
    def region_map(self) -> Path:
        """The file of the region map."""
        return self.directory / "regions.toml"

    def cell(self, region: str) -> str:
        """The cell of `region`. Raises MeshError if the mesh has no such region."""
        return str(self._region(region)["cell"])

    def region_directory(self, region: str) -> Path:
        """Where the data and logs of `region` are."""
        return self.directory / region

    def postgres_directory(self, region: str) -> Path:
        """Where the PostgreSQL of `region` has its data."""
        return self.directory / region / "postgres"

    def workers_directory(self, region: str) -> Path:
        """Where the workers of `region` have their data, each in a directory of its id."""
        return self.directory / region / "workers"

    def worker_id(self, region: str, number: int) -> str:
        """Id of the `number`th worker (from 1) of `region`."""
        return f"{region}-{number}"

    def zone(self, region: str, number: int) -> str:
        """Zone of the `number`th worker (from 1) of `region`."""
        return f"{region}-{'abcdefgh'[(number - 1) % ZONES]}"

    def log_file(self, process: Process) -> Path:
        """Where `process` logs."""
        return self.directory / process.region / f"{process.name}.log"

    def processes(self, region: str) -> list[Process]:
        """The processes that `region`, or the centre, consists of, in the order of starting. Raises MeshError."""
        if region == CENTRAL:
            return [self.process(CENTRAL, CENTRAL, number + 1) for number in range(len(self.central_releases))]
        return [self.process(region, service, instance) for service, instance in self._planned()]

    def process(self, region: str, service: str, instance: int = 1) -> Process:
        """One process, planned or extra; an extra one gets ports that stay its own. Raises MeshError."""
        known = self._region(region)["ports"]
        name = f"{service}-{instance}"
        if name not in known:
            known[name] = ports.choose(_PORTS_EACH, self._taken(), Random())[0]
            self._write()
        first = int(known[name])
        return Process(region, service, instance, internal=first + 2, metrics=first + 3, rest=first, grpc=first + 1)

    def addresses(self, region: str, service: str) -> list[str]:
        """Internal addresses of the planned processes that serve `service`, host:port."""
        holders = (service,) if self.is_apart or service == WORKER else (SET,)
        return [f"{HOST}:{p.internal}" for p in self.processes(region) if p.service in holders]

    def endpoints(self, pids: Mapping[Process, int]) -> dict[str, Any]:
        """The document of endpoints.json; `pids` are the processes that run."""
        regions: dict[str, Any] = {}
        leads: dict[str, int] = {}
        for region in self.regions:
            doors = [process for process in self.processes(region) if process.has_gateway]
            regions[region] = _door(doors[0])
            if doors[0] in pids:
                leads[region] = pids[doors[0]]
            if self.sets is not None:
                regions[region]["sets"] = [{**_door(door), "pid": pids.get(door)} for door in doors]
        centre = self.process(CENTRAL, CENTRAL)
        if centre in pids:
            leads[CENTRAL] = pids[centre]
        central = {"graphql": f"{self.central_urls[0]}/graphql"}
        return {"regions": regions, "central": central, "token": self.token, "pids": leads}

    def write_endpoints(self, pids: Mapping[Process, int]) -> Path:
        """Write endpoints.json, and say where it is."""
        path = self.directory / "endpoints.json"
        _write_private(path, json.dumps(self.endpoints(pids), indent=2) + "\n")
        return path

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep other `up` and `down` of this DIR waiting meanwhile."""
        with (self.directory / "mesh.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _region(self, code: str) -> dict[str, Any]:
        if code == CENTRAL:
            return cast("dict[str, Any]", self._document[CENTRAL])
        try:
            region: dict[str, Any] = self._document["regions"][code]
        except KeyError:
            known = ", ".join(self.regions)
            raise MeshError(f"the mesh in {self.directory} has no region {code!r}; it has: {known}") from None
        return region

    def _insist(self, name: str, asked: int | str | None) -> None:
        has = self._document[name]
        if asked is not None and asked != has:
            shown = "no fixed number" if has is None else has
            raise MeshError(
                f"{self.directory} was made with --{name} {shown}, not {asked}: leave it out, or use another --dir"
            )

    def _add_region(self, code: str, random: Random) -> None:
        if not _CODE.fullmatch(code):
            raise MeshError(
                f"{code!r} cannot be a region: a code is 2 to 12 lower-case letters and digits, such as syd"
            )
        if code == CENTRAL:
            raise MeshError(f"{CENTRAL!r} cannot be a region: the centre is called so")
        regions = self._document["regions"]
        if code in regions:
            return
        number = len(regions) + 1
        if number > MOST_CELLS:
            raise MeshError(f"a mesh has at most {MOST_CELLS} regions")
        regions[code] = {"cell": f"{number:03x}", "ports": {}}
        planned = self._planned()
        first = ports.choose(_PORTS_EACH * len(planned), self._taken(), random)[0]
        regions[code]["ports"] = {
            f"{service}-{instance}": first + _PORTS_EACH * place for place, (service, instance) in enumerate(planned)
        }

    def _planned(self) -> list[tuple[str, int]]:
        """Services and instances that every region consists of."""
        each = [(WORKER, number) for number in range(1, self.workers + 1)]
        if self.is_apart:
            return [(service, 1) for service in SINGLE_SERVICES if service != WORKER] + each
        if self.workers_are_within:
            return [(SET, 1)]
        return [(SET, number) for number in range(1, (self.sets or 1) + 1)] + each

    def _taken(self) -> set[int]:
        places = [self._document[CENTRAL], *self._document["regions"].values()]
        firsts = [first for place in places for first in place["ports"].values()]
        return {first + step for first in firsts for step in range(_PORTS_EACH)}

    def _write(self) -> None:
        for name in ("token", "secret"):
            path = self.directory / name
            if not path.exists():
                _write_private(path, secrets.token_urlsafe(32) + "\n")
        for name in CENTRAL_SECRETS:
            path = self.directory / name
            if not path.exists():
                _write_private(path, secrets.token_hex(32) + "\n")
        for region in (CENTRAL, *self.regions):
            self.region_directory(region).mkdir(exist_ok=True)
        for region in self.regions:
            path = self.region_directory(region) / SECRETS_KEYS
            if not path.exists():
                _write_private(path, secrets.token_hex(32) + "\n")
        _write_private(self.directory / "mesh.json", json.dumps(self._document, indent=2) + "\n")
        self.region_map.write_text(self._region_map(), encoding="utf-8")

    def _region_map(self) -> str:
        tables = []
        for code in self.regions:
            name, latitude, longitude = _REGIONS.get(code, (code, 0.0, 0.0))
            doors = [f"{HOST}:{process.grpc}" for process in self.processes(code) if process.has_gateway]
            tables.append(
                "[[region]]\n"
                f'code = "{code}"\n'
                f'name = "{name}"\n'
                f"latitude = {latitude}\n"
                f"longitude = {longitude}\n"
                f'cells = [{{ id = "{self.cell(code)}", gateways = {json.dumps(doors)} }}]\n'
            )
        return "\n".join(tables)


def _door(process: Process) -> dict[str, Any]:
    return {"rest": f"http://{HOST}:{process.rest}", "grpc": f"{HOST}:{process.grpc}"}


def _write_private(path: Path, text: str) -> None:
    """Replace `path` as a whole, readable by its owner only."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def state_directory() -> Path:
    """Where skerry remembers things of this user."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "skerry"


def remember(directory: Path) -> None:
    """Make `directory` the default DIR from now on."""
    pointer = state_directory() / "last-up"
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.write_text(f"{directory}\n", encoding="utf-8")


def default_directory() -> Path:
    """The DIR of the last `up`; before the first one, a place that PostgreSQL's own user can reach too."""
    with contextlib.suppress(OSError):
        remembered = (state_directory() / "last-up").read_text(encoding="utf-8").strip()
        if remembered and Path(remembered, "mesh.json").exists():
            return Path(remembered)
    return Path(f"/var/tmp/skerry-{os.getuid()}/default")
