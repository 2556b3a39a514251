"""Keys, shards and hosts: what is on disk stays, what moves is little."""

from collections import Counter

import pytest

from sensorium.actors.placement import SHARDS, device_key, place, shard_of, shard_of_key


@pytest.mark.parametrize(
    ("device_id", "key", "shard"),
    [
        ("sensor-001", 8384439769601797838, 718),
        ("urn:dev:mac:0024befffe804ff1", -1294870468552316569, 359),
        ("température", 7779179626234621304, 376),
        ("", -1970711489451281740, 692),
        ("device-42", -8170003244677019667, 1005),
    ],
)
def test_keys_and_shards_are_an_on_disk_format(device_id, key, shard):
    assert device_key(device_id) == key
    assert shard_of(device_id) == shard_of_key(key) == shard


def test_keys_fit_the_logs_signed_column_and_spread_over_the_shards():
    keys = [device_key(f"device-{n}") for n in range(20_000)]
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)
    loads = Counter(map(shard_of_key, keys))
    assert set(loads) == set(range(SHARDS))
    assert max(loads.values()) < 3 * 20_000 / SHARDS


def test_a_placement_is_an_on_disk_format_too():
    """Hosts of two versions must agree on it while one replaces the other."""
    assert place({"host-0": 1.0, "host-1": 1.0, "host-2": 2.0})[:12] == [
        "host-1",
        "host-2",
        "host-2",
        "host-2",
        "host-2",
        "host-2",
        "host-0",
        "host-0",
        "host-2",
        "host-2",
        "host-0",
        "host-2",
    ]


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
def test_one_that_joins_takes_its_share_and_nothing_else_moves(hosts):
    before = dict.fromkeys((f"host-{n}" for n in range(hosts)), 1.0)
    old = place(before)
    taken = 0
    newcomers = [f"new-{n}" for n in range(20)]
    for newcomer in newcomers:
        new = place({**before, newcomer: 1.0})
        moved = [shard for shard in range(SHARDS) if new[shard] != old[shard]]
        assert all(new[shard] == newcomer for shard in moved)
        taken += len(moved)
    assert taken / len(newcomers) <= SHARDS / (hosts + 1) * 1.1


@pytest.mark.parametrize("hosts", [2, 3, 8])
def test_of_one_that_leaves_only_its_own_shards_move(hosts):
    before = dict.fromkeys((f"host-{n}" for n in range(hosts)), 1.0)
    old = place(before)
    for leaver in before:
        new = place({host: weight for host, weight in before.items() if host != leaver})
        assert {old[shard] for shard in range(SHARDS) if new[shard] != old[shard]} == {leaver}


def test_shares_go_by_weight():
    weights = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}
    loads = Counter(place(weights))
    for host, weight in weights.items():
        assert loads[host] == pytest.approx(SHARDS * weight / 8, rel=0.2)


def test_a_heavier_host_only_gains():
    old = place({"a": 1.0, "b": 1.0, "c": 1.0})
    new = place({"a": 1.0, "b": 1.5, "c": 1.0})
    moved = [shard for shard in range(SHARDS) if new[shard] != old[shard]]
    assert moved
    assert {new[shard] for shard in moved} == {"b"}


def test_is_a_function_of_the_weights_alone():
    weights = {"a": 1.0, "b": 3.0, "c": 2.0}
    assert place(weights) == place(dict(reversed(weights.items())))
    assert weights == {"a": 1.0, "b": 3.0, "c": 2.0}


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}])
def test_refuses_what_it_cannot_place_on(weights):
    with pytest.raises(ValueError, match="weight above zero"):
        place(weights)
