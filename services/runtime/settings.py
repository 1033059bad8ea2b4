"""Settings of a process: a TOML file, overridden by SKERRY_* environment variables, overridden by arguments.

Nested ones take two underscores in the environment: SKERRY_DATABASE__DSN. Sections of single services are added by
subclasses, which read the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from services.runtime.errors import InvalidConfig, Violation

_file: ContextVar[Path | None] = ContextVar("settings_file", default=None)


class Section(BaseModel):
    """A table of the settings file. A name that it does not know is an error, since it is a typing error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Addresses(Section):
    """Where the process listens, each "host:port" (port 0: any free one). What is not set is not served."""

    public_rest: str | None = None
    public_grpc: str | None = None
    internal: str | None = None
    """For the other services of the set."""
    metrics: str | None = None
    """Prometheus metrics over HTTP."""


class Database(Section):
    """The region's PostgreSQL: one that is there (`dsn`), or an embedded one in `directory`."""

    dsn: SecretStr | None = None
    directory: Path | None = None


class Limits(Section):
    """Bounds on what is taken in and what is held."""

    body_bytes: int = Field(default=1024 * 1024, gt=0)
    """Largest body of a REST request."""
    shutdown_grace: float = Field(default=5.0, ge=0)
    """Seconds that running calls get when the process ends."""


class Settings(BaseSettings):
    """What every process of a set is told."""

    model_config = SettingsConfigDict(env_prefix="SKERRY_", env_nested_delimiter="__", extra="ignore", frozen=True)

    region: str
    """Code of the region, as in the region map."""
    cell: str = Field(default="001", pattern="^([1-9a-f][0-9a-f]{2}|0[1-9a-f][0-9a-f]|00[1-9a-f])$")
    """Three hex digits: the cell of the region that this process is of."""
    instance: str = ""
    """Name of this process among those of its kind, for logs and leases."""
    region_map: Path | None = None
    """The TOML file of all regions."""
    secret: SecretStr | None = None
    """What the services of a set know each other by."""
    development_token: SecretStr | None = None
    """A token that may do everything. Never set in production."""
    data_dir: Path | None = None
    """Where the process keeps files of its own."""
    addresses: Addresses = Addresses()
    peers: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Internal addresses of services that run in other processes, by the service's name."""
    database: Database = Database()
    limits: Limits = Limits()
    otlp: str | None = None
    """Endpoint of an OTLP gRPC collector. Nothing is exported without one."""
    log_level: str = "info"

    @classmethod
    def load(cls, file: Path | None = None, **overrides: Any) -> Self:
        """Read the settings from `file`, the environment and `overrides`, the latter before the former.

        Raises InvalidConfig that names every setting that is missing or wrong, and never its value.
        """
        if file is not None and not file.is_file():
            raise InvalidConfig(f"the settings file {file} does not exist")
        token = _file.set(file)
        try:
            return cls(**overrides)
        except ValidationError as error:
            violations = [Violation(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_input=False)]
            named = "; ".join(f"{violation.field}: {violation.why}" for violation in violations)
            raise InvalidConfig(f"the settings are not valid: {named}", violations=violations) from None
        except ValueError as error:
            raise InvalidConfig(f"the settings file {file} cannot be read: {error}") from error
        finally:
            _file.reset(token)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _file.get()
        toml = () if file is None else (TomlConfigSettingsSource(settings_cls, file),)
        return (init_settings, env_settings, *toml)
