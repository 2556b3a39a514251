"""What `plan` promises of any assignment and any hosts."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.placement import SHARDS, Plan, plan

HOSTS = st.dictionaries(
    st.integers(0, 30).map("host-{}".format),
    st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0, 3.0]),
    min_size=1,
    max_size=8,
)
OWNING = [None, *(f"host-{n}" for n in range(0, 31, 3))]
OWNERS = st.randoms(use_true_random=False).map(lambda rng: [rng.choice(OWNING) for _ in range(SHARDS)])
NOBODY = [None] * SHARDS


def after(owners: list[str | None], todo: Plan) -> list[str | None]:
    """The owners once the plan is carried out; fails where it cannot be."""
    result = list(owners)
    for taker, shards in todo.claims.items():
        for shard in shards:
            assert result[shard] is None
            result[shard] = taker
    for (giver, taker), shards in todo.moves.items():
        for shard in shards:
            assert result[shard] == giver == owners[shard], "moved twice"
            result[shard] = taker
    return result


def moved(todo: Plan) -> int:
    return sum(map(len, todo.moves.values()))


def equal(hosts: int) -> dict[str, float]:
    return {f"host-{n}": 1.0 for n in range(hosts)}


@given(OWNERS, HOSTS)
def test_every_shard_has_one_owner_and_every_host_its_share(owners, weights):
    before = (list(owners), dict(weights))
    todo = plan(owners, weights)
    assert (owners, weights) == before
    assert plan(list(owners), dict(reversed(weights.items()))) == todo, "a function of its arguments alone"
    result = after(owners, todo)
    counts = Counter(result)
    assert set(counts) <= set(weights)
    for host, weight in weights.items():
        exact = SHARDS * weight / sum(weights.values())
        assert math.floor(exact) <= counts[host] <= math.ceil(exact)
    again = plan(result, weights)
    assert again == Plan({}, {}), "and then nothing is left to do"


@given(st.integers(1, 12), st.sampled_from([0.5, 1.0, 2.0]))
def test_one_that_joins_gets_its_share_from_the_others_and_nothing_else_moves(hosts, weight):
    owners = after(NOBODY, plan(NOBODY, equal(hosts)))
    todo = plan(owners, {**equal(hosts), "new": weight})
    assert {taker for _, taker in todo.moves} == {"new"}
    assert not todo.claims
    assert moved(todo) <= SHARDS * weight / (hosts + weight) * 1.1


@given(st.integers(2, 12), st.booleans())
def test_of_one_that_leaves_only_its_own_shards_move(hosts, dead):
    owners = after(NOBODY, plan(NOBODY, equal(hosts)))
    rest = equal(hosts)
    del rest["host-1"]
    seen = [None if dead and owner == "host-1" else owner for owner in owners]
    todo = plan(seen, rest)
    assert {giver for giver, _ in todo.moves} == (set() if dead else {"host-1"})
    assert moved(todo) + sum(map(len, todo.claims.values())) <= SHARDS / hosts * 1.1


def test_what_a_plan_has_begun_the_next_one_goes_on_with():
    owners = after(NOBODY, plan(NOBODY, equal(3)))
    first = plan(owners, equal(4))
    (_, taker), shards = next(iter(first.moves.items()))
    for shard in shards[: len(shards) // 2]:
        owners[shard] = taker
    second = plan(owners, equal(4))
    assert moved(second) == moved(first) - len(shards) // 2
