"""Settings of one instance of the centre: from the environment (SKERRY_CENTRAL_…) or from whoever composes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.addresses import APPS_DOMAIN

KEY_BYTES = 32
DAY = 86_400.0


class CentralSettings(BaseSettings):
    """What one instance needs to know. Instances of one centre share `database`, `token` and `secret_key`."""

    model_config = SettingsConfigDict(env_prefix="SKERRY_CENTRAL_", extra="forbid")

    listen: str = "127.0.0.1:4000"
    """host:port of the HTTP server; port 0 takes a free one."""
    database: SecretStr | None = None
    """DSN of the database, which exists. Excludes `postgres_dir`."""
    postgres_dir: Path | None = None
    """Folder of a PostgreSQL of the centre's own: one instance starts it and restarts it when it dies."""
    token: SecretStr
    """What callers send as Bearer token."""
    development_token: SecretStr | None = None
    """A token that clients may do everything with. For development only."""
    secret_key: SecretStr
    """Key of the app secrets at rest: 64 hex digits."""
    region_map: Path
    """The region map, a TOML file that every region has as well."""
    gateways: dict[str, str] = Field(default_factory=dict)
    """Region to the REST base URL of one of its gateways: where the legacy mounts conversion asks for volumes."""
    gateway_token: SecretStr | None = None
    """The centre's own token at the gateways."""
    pass_baggage_on: bool = True
    """Send the caller's baggage along when a gateway is asked. Off, the centre hides where a call came from."""
    release: str = "1"
    """Name of the release that this instance is."""
    releases: Path | None = None
    """TOML file with releases besides the built-in ones."""
    faults: bool = False
    """Serve POST /faults. For drills in development only."""
    apps_domain: str = APPS_DOMAIN
    """Domain below which apps have their host names."""
    viewer_email: str = "operator@skerry.internal"
    """Who the token's holder is said to be."""
    feed_kept_s: float = Field(default=7 * DAY, gt=0)
    """How long changes can be resumed from, in seconds."""
    longest_wait_s: float = Field(default=30.0, gt=0)
    """Longest time that `changes` waits, in seconds, whatever the caller asks for."""
    request_timeout_s: float = Field(default=15.0, gt=0)
    """Time for a request, waiting not included, in seconds."""
    region_timeout_s: float = Field(default=3.0, gt=0)
    """Time for a question to a region, in seconds."""
    stop_grace_s: float = Field(default=5.0, ge=0)
    """Time for requests in flight when the instance stops, in seconds."""

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be host:port")
        return value

    @field_validator("secret_key")
    @classmethod
    def _whole_key(cls, value: SecretStr) -> SecretStr:
        try:
            key = bytes.fromhex(value.get_secret_value())
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise ValueError(f"must be {2 * KEY_BYTES} hex digits")
        return value

    @field_validator("token")
    @classmethod
    def _some_token(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value():
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _one_database(self) -> CentralSettings:
        if (self.database is None) == (self.postgres_dir is None):
            raise ValueError("exactly one of database and postgres_dir must be set")
        return self

    @property
    def key(self) -> bytes:
        """The key of the app secrets."""
        return bytes.fromhex(self.secret_key.get_secret_value())

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where to listen."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)
