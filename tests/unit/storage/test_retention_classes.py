"""Retention classes: numbers that stay, noted alike in every database, and what class a device is of."""

import pytest
from storage_rows import registration

from sensorium.actors.placement import device_key
from sensorium.actors.records import Commit
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool, acquired
from sensorium.storage.retention_classes import (
    NUMBERS,
    Days,
    NoClassLeft,
    classes_of,
    longest,
    numbered,
    settle,
    stored,
)

WEEK, MONTH, YEAR = Days(7), Days(30), Days(365)


def test_each_retention_has_a_number_and_types_share_it() -> None:
    classes, types = numbered({0: Days()}, {}, WEEK, {"b": MONTH, "a": YEAR, "c": MONTH, "d": WEEK})
    assert classes == {0: WEEK, 1: YEAR, 2: MONTH}
    assert types == {"a": 1, "b": 2, "c": 2}
    assert numbered(classes, types, WEEK, {"b": MONTH, "a": YEAR, "c": MONTH}) == (classes, types)


def test_a_class_whose_types_change_together_keeps_its_number() -> None:
    classes, types = numbered({0: WEEK, 1: MONTH}, {"a": 1, "b": 1}, WEEK, {"a": YEAR, "b": YEAR})
    assert (classes, types) == ({0: WEEK, 1: YEAR}, {"a": 1, "b": 1})


def test_a_type_that_parts_from_others_has_a_number_of_its_own() -> None:
    classes, types = numbered({0: WEEK, 1: MONTH}, {"a": 1, "b": 1}, WEEK, {"a": YEAR, "b": MONTH})
    assert (classes, types) == ({0: WEEK, 1: MONTH, 2: YEAR}, {"a": 2, "b": 1})


def test_what_was_written_keeps_its_days_when_a_type_comes_back_to_the_default() -> None:
    classes, types = numbered({0: WEEK, 1: MONTH}, {"a": 1}, WEEK, {})
    assert (classes, types) == ({0: WEEK, 1: MONTH}, {})
    # The number is found again by its days.
    assert numbered(classes, types, WEEK, {"c": MONTH})[1] == {"c": 1}


def test_two_classes_that_become_alike_are_one_from_then_on() -> None:
    classes, types = numbered({0: WEEK, 1: MONTH, 2: YEAR}, {"a": 1, "b": 2}, WEEK, {"a": YEAR, "b": YEAR})
    assert (classes, types) == ({0: WEEK, 1: MONTH, 2: YEAR}, {"a": 2, "b": 2})


def test_numbers_come_to_an_end() -> None:
    full = {n: Days(n + 10) for n in range(NUMBERS)}
    with pytest.raises(NoClassLeft, match="64 retentions"):
        numbered(full, {}, WEEK, {"a": MONTH._replace(events=1)})


def test_the_longest_of_some() -> None:
    assert (longest([7, 30, 9]), longest([7, None])) == (30, None)


@pytest.mark.database
async def test_all_databases_have_the_same_numbers(dsn: str, module_dsn: str, pool: Pool) -> None:
    assert await settle([dsn, module_dsn], WEEK, {"b": MONTH, "a": YEAR}) == {"a": 1, "b": 2}
    # Cut off before the second one: done again it comes to the same.
    assert await settle([dsn], WEEK, {"b": MONTH, "c": Days(8)}) == {"b": 2, "c": 3}
    assert await settle([dsn, module_dsn], WEEK, {"b": MONTH, "c": Days(8)}) == {"b": 2, "c": 3}
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    await log.commit(Commit(registrations=[registration(f"of-{t}", t) for t in ("a", "b", "c", "rest")]))
    async with acquired(pool) as connection:
        assert await stored(connection) == {0: WEEK, 1: YEAR, 2: MONTH, 3: Days(8)}
        keys = {t: device_key(f"of-{t}") for t in ("a", "b", "c", "rest")}
        assert await classes_of(connection, keys.values()) == {keys["b"]: 2, keys["c"]: 3}
        # The type that lost its class is remembered, and so is a device's type of before.
        await log.commit(Commit(registrations=[registration("of-b", "c")]))
        assert await classes_of(connection, [keys["b"]]) == {keys["b"]: 3}
        rows = await connection.fetch(
            "SELECT device_type, class FROM retention_class_types WHERE until > 'epoch'"
        )
        assert [tuple(row) for row in rows] == [("a", 1)]
        rows = await connection.fetch("SELECT device, device_type FROM former_device_types")
        assert [tuple(row) for row in rows] == [(keys["b"], "b")]
    await log.close()
