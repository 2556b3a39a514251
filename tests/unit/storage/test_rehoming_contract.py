"""A device gets a dedicated shard and gives it back: what every store promises of it."""

import msgspec
import pytest
from storage_rows import NOON_MS, event, reading, registration, snapshot
from storage_stores import Store

from sensorium.actors.errors import Moved
from sensorium.actors.placement import SHARDS, dedicated_shards, device_key, shard_of
from sensorium.actors.ports import Held, Isolated, Log, Rehoming
from sensorium.actors.records import Commit, Registration, TimerRow

SHARD = shard_of("d")
OWN = SHARDS + SHARD // 4  # in the database of the shard, however many there are here


def to_own(head: int, own_head: int = 0, epochs: tuple[int, int] = (1, 0), device: str = "d") -> Rehoming:
    """Of a device whose shard has that newest offset."""
    return Rehoming(
        device,
        SHARD,
        OWN,
        {SHARD: epochs[0], OWN: epochs[1]},
        {SHARD: head, OWN: own_head + 1},
        event(device, own_head + 1, "isolation")._replace(shard=OWN),
        snapshot(device, own_head + 1, state=b"on its own")._replace(shard=OWN),
    )


def back(head: int, own_head: int, epochs: tuple[int, int]) -> Rehoming:
    return Rehoming(
        "d",
        OWN,
        SHARD,
        {SHARD: epochs[0], OWN: epochs[1]},
        {SHARD: head + 1, OWN: own_head},
        event("d", head + 1, "isolation"),
        snapshot("d", head + 1, state=b"back"),
    )


async def owner(store: Store, *shards: int) -> tuple[int, Log]:
    incarnation = await store.members.join("a")
    log = store.log(incarnation)
    await log.claim(shards)
    return incarnation, log


async def test_there_and_back(store: Store) -> None:
    incarnation, log = await owner(store, SHARD, 5)
    timer = TimerRow(SHARD, "d", "offline", NOON_MS, NOON_MS)
    rows = [reading("d", 1), reading("d", 2, NOON_MS + 1, 2)]
    await log.commit(Commit(readings=rows, timers=[timer], epochs={SHARD: 1}))
    await log.save([snapshot("d", 1)], {SHARD: 1})

    assert await log.rehome(to_own(2)) == {
        5: Held(1),
        SHARD: Held(2, 2, {"d": OWN}),
        OWN: Held(1, 1, {"d": OWN}),
    }
    members = await store.members.read()
    assert members.homes == {"d": OWN}
    assert members.owners[OWN] == (incarnation, 1)
    [found] = await log.load(["d"])
    assert found.snapshot is not None
    assert found.snapshot.state == b"on its own"
    assert found.tail == []
    assert await log.timers([SHARD], NOON_MS + 1, 9) == []
    assert await log.timers([OWN], NOON_MS + 1, 9) == [timer._replace(shard=OWN)]

    with pytest.raises(Moved):
        await log.commit(Commit(readings=[reading("d", 3, NOON_MS + 2, 3)], epochs={SHARD: 1}))
    third = reading("d", 2, NOON_MS + 2, 3)._replace(shard=OWN)
    await log.commit(Commit(readings=[third], epochs={OWN: 1}))
    # The newest offset of the shard that it has left is above that; so is what a late save says.
    await log.save([snapshot("d", 2, state=b"late")], {})
    [found] = await log.load(["d"])
    assert [row.key for row in found.tail] == [3]

    assert await log.rehome(back(2, 2, (2, 1))) == {5: Held(1), SHARD: Held(3, 3)}
    members = await store.members.read()
    assert members.homes == {}
    assert members.owners[OWN] == (None, 2)
    await log.save([snapshot("d", 9, state=b"late")._replace(shard=OWN)], {})
    [found] = await log.load(["d"])
    assert found.snapshot is not None
    assert (found.snapshot.state, found.tail) == (b"back", [])
    assert await log.timers([SHARD], NOON_MS + 1, 9) == [timer]
    await log.commit(Commit(readings=[reading("d", 4, NOON_MS + 3, 4)], epochs={SHARD: 3}))
    [found] = await log.load(["d"])
    assert [row.offset for row in found.tail] == [4]


async def test_the_next_device_in_a_dedicated_shard_goes_on_with_its_offsets(store: Store) -> None:
    incarnation, log = await owner(store, SHARD)
    await log.rehome(to_own(0))
    await log.rehome(back(0, 1, (2, 1)))
    assert await log.open([OWN]) == {OWN: 1}
    again = to_own(1, own_head=1, epochs=(3, 2), device="d")
    assert (await log.rehome(again))[OWN] == Held(3, 2, {"d": OWN})
    await store.members.fence(incarnation, dead=True)
    other = store.log(await store.members.join("b"))
    assert await other.claim([OWN]) == {OWN: Held(4, None, {"d": OWN})}
    assert await other.open([OWN]) == {OWN: 2}


async def test_a_claim_that_comes_late_takes_no_shard_that_is_no_devices(store: Store) -> None:
    """Else it would be free for no device ever again."""
    _, log = await owner(store, SHARD)
    await log.rehome(to_own(0))
    await log.rehome(back(0, 1, (2, 1)))
    assert await log.claim([OWN]) == {SHARD: Held(3, 1)}
    assert (await store.members.read()).owners[OWN] == (None, 2)
    await log.rehome(to_own(1, own_head=1, epochs=(3, 2)))


async def test_what_is_not_as_it_was_thought_to_be_is_refused_and_changes_nothing(store: Store) -> None:
    incarnation, log = await owner(store, SHARD)
    stranger = store.log(await store.members.join("b"))
    for move in (to_own(0, epochs=(2, 0)), to_own(0, epochs=(1, 1)), back(0, 0, (1, 0))):
        with pytest.raises(Moved):
            await log.rehome(move)
    with pytest.raises(Moved):
        await stranger.rehome(to_own(0))
    await log.rehome(to_own(0))
    with pytest.raises(Moved):  # it is taken
        await log.rehome(to_own(0, epochs=(2, 1), device="e"))
    other = (await store.members.read()).alive[1].incarnation
    assert await log.hand_over({OWN: Held(1, 1)}, other) == {OWN: 2}
    with pytest.raises(Moved):  # it is somebody else's
        await log.rehome(back(0, 1, (2, 2)))
    members = await store.members.read()
    assert [members.owners[shard] for shard in (SHARD, OWN)] == [(incarnation, 2), (other, 2)]
    assert await log.held() == {SHARD: Held(2, 0, {"d": OWN})}
    assert await stranger.held() == {OWN: Held(2, 1, {"d": OWN})}


async def test_a_hand_over_takes_along_who_is_away(store: Store) -> None:
    _, log = await owner(store, SHARD)
    await log.rehome(to_own(0))
    incarnation = await store.members.join("b")
    await log.hand_over({SHARD: Held(2, 0)}, incarnation)
    assert await store.log(incarnation).held() == {SHARD: Held(3, 0, {"d": OWN})}


def isolated(device_id: str, isolation: str | None, device_type: str = "pump") -> Registration:
    return msgspec.structs.replace(registration(device_id, device_type), isolation=isolation)


async def test_who_is_to_be_isolated(store: Store) -> None:
    _, log = await owner(store, *range(SHARDS))
    held = await log.held()
    rows = [
        isolated("d", None, "press"),
        isolated("a", None, "press"),
        isolated("b", "shared", "press"),
        isolated("x", "process"),
        isolated("w", "process"),
        isolated("c", None),
        isolated("g", None, "gauge"),
        msgspec.structs.replace(isolated("gone", "process"), status="decommissioned"),
    ]
    epochs = {shard_of(row.device_id): held[shard_of(row.device_id)].epoch for row in rows}
    await log.commit(Commit(registrations=rows, epochs=epochs))
    by_type = {"press": True, "gauge": False}

    async def ids(*asked: object) -> list[str]:
        return [one.device_id for one in await store.members.isolated(*asked)]  # type: ignore[arg-type]

    assert await ids({}, False, 9) == ["w", "x"]
    assert await ids(by_type, False, 9) == ["w", "x", "a", "d"]
    assert await ids(by_type, True, 9) == ["w", "x", "a", "c", "d"]
    await log.rehome(to_own(0))
    assert await ids(by_type, False, 3) == ["d", "w", "x"]
    assert (await store.members.isolated(by_type, False, 1)) == [Isolated("d", "press")]
    assert await ids({}, False, 9) == ["w", "x"]


def test_dedicated_shards_are_in_the_database_of_the_shard() -> None:
    assert OWN in dedicated_shards(SHARD, 1)
    assert device_key("d") % SHARDS == SHARD
