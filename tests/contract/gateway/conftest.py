"""One region for all contract tests of a module: each test has apps of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support_gateway import TestRegion
from tests.support_gateway import region as new_region


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def region(postgres: str) -> AsyncIterator[TestRegion]:
    """A region that serves, with one worker."""
    async with new_region(postgres) as serving:
        yield serving
