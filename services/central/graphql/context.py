"""What resolvers work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import strawberry

from services.central.catalog import Catalog
from services.central.conversion import Conversion
from services.central.feed import Feed
from services.central.mirror import Mirror
from services.central.releases import Release
from services.runtime.regions import RegionMap


@dataclass(frozen=True, slots=True)
class Centre:
    """One instance of the centre, as its GraphQL sees it."""

    catalog: Catalog
    feed: Feed
    mirror: Mirror
    conversion: Conversion
    regions: RegionMap
    releases: Mapping[str, Release]
    apps_domain: str
    viewer_email: str


Info = strawberry.Info[Centre, Any]

Resolver = TypeVar("Resolver", bound=Callable[..., Any])


def field(description: str) -> Callable[[Resolver], Resolver]:
    """strawberry.field with a description, for type checkers too."""
    decorator: Callable[[Resolver], Resolver] = strawberry.field(description=description)
    return decorator


def mutation(description: str) -> Callable[[Resolver], Resolver]:
    """strawberry.mutation with a description, for type checkers too."""
    decorator: Callable[[Resolver], Resolver] = strawberry.mutation(description=description)
    return decorator
