"""A runtime with few shards, for those who run thousands: no look at all of them has to count to 1,280."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def few_shards(shards: int = 16, dedicated: int = 4) -> Iterator[None]:
    """So many meanwhile, wherever their number has been imported."""
    numbers = {"SHARDS": shards, "DEDICATED_SHARDS": dedicated, "ALL_SHARDS": shards + dedicated}
    modules = [m for name, m in sys.modules.items() if name.startswith(("sensorium.actors", __package__))]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name in numbers.keys() & vars(module).keys():
                patch.setattr(module, name, numbers[name])
        yield
