"""One app a test."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.serve.world import World, world


@pytest.fixture
async def platform() -> AsyncIterator[World]:
    async with world() as opened:
        yield opened
