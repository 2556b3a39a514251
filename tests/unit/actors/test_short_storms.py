"""A thousand short storms: few shards and devices, each with some kinds of faults of its own.

As in `test_storm`, and with the same invariants; what takes rounds and many devices to come about is found
there. A seed that fails is named and runs the same way again:

    SENSORIUM_SEED=4711 pytest tests/unit/actors/test_short_storms.py -k weather
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import pytest

from sensorium.actors.testing import MemoryStore
from tests.unit.actors.few_shards import few_shards
from tests.unit.actors.test_storm import FAULTS, Size, storm
from tests.unit.actors.virtual import run_virtually

SHORT: Final = Size(devices=2, isolated=1, active=2, rounds=1, steps=6, faults=3, bad=1.0, moves=0.4)
SEEDS: Final = 1_000
AT_ONCE: Final = 50
"""Seeds of one test."""

_seed = os.environ.get("SENSORIUM_SEED")
STORMS = (
    [range(int(_seed), int(_seed) + 1)]
    if _seed
    else [range(n, n + AT_ONCE) for n in range(0, SEEDS, AT_ONCE)]
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Few shards, and nobody reads what thousands of hosts say of being lost."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with few_shards():
        yield
    logging.disable(level)


def run(seed: int, size: Size = SHORT) -> None:
    """Run it; what fails names the seed."""
    try:
        run_virtually(partial(storm, seed, size), seed)
    except BaseException as error:
        error.add_note(
            f"again: SENSORIUM_SEED={seed} pytest tests/unit/actors/test_short_storms.py -k weather"
        )
        raise


@pytest.mark.parametrize("seeds", STORMS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_in_any_weather(seeds: range) -> None:
    for seed in seeds:
        run(seed)


@pytest.mark.parametrize(
    ("check", "kinds"),
    [("_check_epochs", FAULTS), ("_check_fence", ("late", "host paused", "cut from callers"))],
)
def test_without_one_of_the_checks_a_short_storm_finds_it(
    check: str, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance alone comes upon the second committer, though the other check is there."""
    monkeypatch.setattr(MemoryStore, check, lambda store, *_: None)

    def storms() -> None:
        for seed in range(SEEDS):
            run(seed, replace(SHORT, kinds=kinds))

    with pytest.raises(AssertionError, match=r"wrote shard \d+ at epoch"):
        storms()
