"""Who owns which shard: what every implementation of `Membership` and `Log` promises of it."""

import asyncio

import pytest
from storage_rows import reading
from storage_stores import Store

from sensorium.actors.errors import Fenced, Moved
from sensorium.actors.placement import SHARDS, shard_of
from sensorium.actors.ports import Held, Wanted
from sensorium.actors.records import Commit

SHARD = shard_of("d")
ALL = range(SHARDS)


async def test_what_nobody_owns_can_be_claimed_once(store: Store) -> None:
    a, b = [store.log(await store.members.join(name)) for name in "ab"]
    assert await a.held() == {}
    assert await a.claim([1, 2]) == {1: Held(1), 2: Held(1)}
    assert await b.claim([2, 3]) == {3: Held(1)}
    assert await a.held() == {1: Held(1), 2: Held(1)}
    await asyncio.gather(a.claim(ALL), b.claim(ALL))
    assert len(await a.held()) + len(await b.held()) == SHARDS


async def test_a_commit_is_for_the_epochs_it_says(store: Store) -> None:
    a, b = [store.log(await store.members.join(name)) for name in "ab"]
    epoch = (await a.claim([SHARD, 5]))[SHARD].epoch
    await a.commit(Commit(readings=[reading("d", 1)], epochs={SHARD: epoch}))
    owner = (await store.members.read()).alive[1].incarnation
    assert await a.hand_over({SHARD: Held(epoch, 1)}, owner) == {SHARD: epoch + 1}
    assert await b.held() == {SHARD: Held(epoch + 1, 1)}
    with pytest.raises(Moved):
        await a.commit(Commit(readings=[reading("d", 2)], epochs={5: 1, SHARD: epoch}))
    await a.commit(Commit(readings=[reading("e", 1)], epochs={5: 1}))
    await b.commit(Commit(readings=[reading("d", 2)], epochs={SHARD: epoch + 1}))
    [found] = await b.load(["d"])
    assert [row.offset for row in found.tail] == [1, 2]


async def test_only_the_owner_gives_and_only_to_the_living(store: Store) -> None:
    first, second, third = [await store.members.join(name) for name in "abc"]
    a, b = store.log(first), store.log(second)
    await a.claim([1, 2])
    assert await b.hand_over({1: Held(1)}, third) == {}
    assert await a.hand_over({1: Held(7)}, second) == {}
    await store.members.fence(third)
    assert await a.hand_over({1: Held(1)}, third) == {}
    assert await a.hand_over({1: Held(1), 2: Held(9)}, second) == {1: 2}
    with pytest.raises(Fenced):
        await store.log(third).hand_over({1: Held(2)}, second)


async def test_shards_of_a_fenced_host_are_free_when_its_lease_is_over(store: Store) -> None:
    first, second, third = [await store.members.join(name) for name in "abc"]
    a, b, c = map(store.log, (first, second, third))
    await a.claim([1])
    await b.claim([2])
    await store.members.fence(first)
    await store.members.fence(second, dead=True)
    members = await store.members.read()
    assert [m.host for m in members.alive] == ["c"]
    assert members.owners[1:4] == [(None, 1), (None, 1), (None, 0)]
    assert 3.0 < members.claimable_in_s <= 5.0
    assert await c.claim([1, 2]) == {2: Held(2)}
    await store.members.fence(first, dead=True)
    assert await c.claim([1, 2]) == {1: Held(2), 2: Held(2)}


async def test_shards_can_be_taken_from_a_living_host(store: Store) -> None:
    first, second = [await store.members.join(name) for name in "ab"]
    a, b = store.log(first), store.log(second)
    await a.claim([1, SHARD])
    await store.members.take({1: 9, SHARD: 1})
    assert await a.held() == {1: Held(1)}
    with pytest.raises(Moved):
        await a.commit(Commit(readings=[reading("d", 1)], epochs={SHARD: 1}))
    assert await b.claim([SHARD]) == {}
    members = await store.members.read()
    assert members.owners[SHARD] == (None, 2)
    assert members.owners[1] == (first, 1)


async def test_what_a_hand_over_leaves_is_committed_on_and_what_is_taken_then_is_not(store: Store) -> None:
    first, second = [await store.members.join(name) for name in "ab"]
    a = store.log(first)
    await a.claim([1, 2, SHARD])
    for shard in (1, 2):
        assert await a.hand_over({shard: Held(1)}, second) == {shard: 2}
        assert await a.hand_over({shard: Held(1)}, second) == {}
        await a.commit(Commit(readings=[reading("d", shard)], epochs={SHARD: 1}))
        with pytest.raises(Moved):
            await a.commit(Commit(readings=[reading("d", 9)], epochs={shard: 1, SHARD: 1}))
    await store.members.take({SHARD: 1})
    for _ in range(2):
        with pytest.raises(Moved):
            await a.commit(Commit(readings=[reading("d", 9)], epochs={SHARD: 1}))
        await a.held()


async def test_what_is_wanted_is_kept(store: Store) -> None:
    assert (await store.members.read()).wanted == Wanted()
    await store.members.want(Wanted(3, ("n1",)))
    assert (await store.members.read()).wanted == Wanted(3, ("n1",))
