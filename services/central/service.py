"""One instance of the centre, as a component of a process."""

from __future__ import annotations

import asyncio
import math
import secrets
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from random import Random, SystemRandom

import asyncpg
import httpx
import uvicorn

from services.central import releases
from services.central.app import CentralApp
from services.central.callers import Callers
from services.central.catalog import Catalog
from services.central.conversion import Conversion
from services.central.database import Database, ensure_database
from services.central.faults import Faults
from services.central.feed import Feed, Waker
from services.central.graphql.context import Centre
from services.central.lookup import GatewayLookup
from services.central.mirror import Mirror
from services.central.settings import CentralSettings
from services.central.tokens import Tokens
from services.central.vault import Vault
from services.runtime.clock import Clock, SystemClock
from services.runtime.postgres import OwnedPostgres
from services.runtime.principals import DEVELOPER, Principal
from services.runtime.regions import RegionMap
from services.runtime.registry import Registry
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log

DATABASE = "central"
"""Name of the database that the centre makes in a PostgreSQL of its own."""
FORGET_EVERY_S = 60.0
HEALTH_TIMEOUT_S = 1.0
KEEP_ALIVE_S = 75


class CentralService:
    """Serves HTTP on `settings.listen`. `port` is 0 until it listens.

    With `postgres_dir`, several instances may share the folder: one of them looks after the PostgreSQL in it, and
    another takes over when that one ends.
    """

    name = "central"

    def __init__(self, settings: CentralSettings, *, clock: Clock | None = None, random: Random | None = None) -> None:
        """Raises ValueError for a release that there is not, InvalidConfig for a wrong region map."""
        self.port = 0
        self.release = releases.choose(settings.release, settings.releases)
        self.regions = RegionMap.load(settings.region_map)
        self.postgres = OwnedPostgres(settings.postgres_dir) if settings.postgres_dir else None
        self._settings = settings
        self._clock = clock or SystemClock()
        self._random = random or SystemRandom()

    def register(self, registry: Registry) -> None:
        """Nothing: it has no gRPC service."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled; then let requests in flight finish. Calls `ready()` when it serves.

        Raises OSError when the address cannot be had, TaskDied when background work ends.
        """
        listener = self._listen()
        try:
            if self.postgres is None:
                await self._serve(listener, ready)
            else:
                await run_forever(central_postgres=self.postgres.own(), central=self._serve(listener, ready))
        finally:
            listener.close()
            if self.postgres is not None:
                await self.postgres.release()

    def _listen(self) -> socket.socket:
        host, port = self._settings.host_and_port
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            why = f"cannot listen on {host}:{port} ({error.strerror}); is another process there?"
            raise OSError(error.errno, why) from error
        self.port = listener.getsockname()[1]
        return listener

    async def _dsn(self) -> str:
        if self.postgres is not None:
            await self.postgres.wait_until_ready()
            await ensure_database(self.postgres.dsn, DATABASE)
            return self.postgres.dsn_of(DATABASE)
        if self._settings.database is None:
            raise ValueError("neither database nor postgres_dir is set")
        return self._settings.database.get_secret_value()

    async def _serve(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        settings = self._settings
        dsn = await self._dsn()
        async with (
            Database.open(dsn, self._clock, timeout=settings.request_timeout_s) as database,
            httpx.AsyncClient(timeout=settings.region_timeout_s, trust_env=False) as http,
        ):
            waker = Waker(dsn, self._clock)
            vault = Vault(settings.key, secrets.token_bytes)
            catalog = Catalog(database, vault, self.regions, self._clock, self._random)
            tokens = Tokens(database, vault, secrets.token_bytes)
            feed = Feed(database, waker, self._clock, catalog.reveal, settings.longest_wait_s)
            await catalog.seed()
            await tokens.seed()
            app = self._app(database, catalog, feed, tokens, http)
            log.info("central_started", release=self.release.name, port=self.port)
            await run_forever(
                central_listen=waker.run(),
                central_forget=self._forget(feed),
                central_http=_serve_http(app, listener, ready, waker, settings.stop_grace_s),
            )

    def _app(
        self, database: Database, catalog: Catalog, feed: Feed, tokens: Tokens, http: httpx.AsyncClient
    ) -> CentralApp:
        settings = self._settings
        token = settings.gateway_token.get_secret_value() if settings.gateway_token else ""
        lookup = GatewayLookup(http, settings.gateways, token, pass_baggage_on=settings.pass_baggage_on)
        centre = Centre(
            catalog=catalog,
            feed=feed,
            mirror=Mirror(database),
            conversion=Conversion(self.release, catalog, lookup),
            tokens=tokens,
            region_map=self.regions,
            converters=releases.load(settings.releases) if settings.releases else releases.RELEASES,
            apps_domain=settings.apps_domain,
        )

        async def healthy() -> bool:
            try:
                async with asyncio.timeout(HEALTH_TIMEOUT_S), database.read() as session:
                    return await session.one("head") is not None
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                return False

        return CentralApp(
            centre,
            callers=self._callers(tokens),
            timeout=settings.request_timeout_s + settings.longest_wait_s,
            healthy=healthy,
            faults=Faults(self._clock, self._random) if settings.faults else None,
        )

    def _callers(self, tokens: Tokens) -> Callers:
        settings = self._settings
        everything = {settings.token.get_secret_value(): Principal(settings.viewer_email)}
        if settings.development_token is not None:
            everything[settings.development_token.get_secret_value()] = DEVELOPER
        return Callers(everything, tokens, self._clock)

    async def _forget(self, feed: Feed) -> None:
        while True:
            try:
                await feed.forget(self._settings.feed_kept_s)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                log.warning("central_forget_failed", reason=str(error))
            await self._clock.sleep(FORGET_EVERY_S)


async def _serve_http(
    app: CentralApp, listener: socket.socket, ready: Callable[[], None], waker: Waker, grace: float
) -> None:
    config = uvicorn.Config(
        app.build(),
        http="httptools",
        ws="none",
        lifespan="off",
        loop="none",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(grace),
    )
    server = _Server(config, ready)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    finally:
        # Those who wait for changes are answered, so that they do not hold the end up.
        waker.close()
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """uvicorn without its handlers of signals, which are the process's own business."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()
