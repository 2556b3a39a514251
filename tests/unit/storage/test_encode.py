"""Rows survive the way through PostgreSQL's binary COPY."""

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_rows import NOON_MS, reading
from storage_stores import Store

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.metrics import BOOL, NUMBER, TEXT, MetricSet, metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import _rows_py
from sensorium.storage.encode import _reading, decode_values, encode_readings
from sensorium.storage.log import PgLog

int64 = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
BY_KIND: dict[str, st.SearchStrategy[Any]] = {NUMBER: st.floats(), BOOL: st.booleans(), TEXT: texts}


@st.composite
def measured(draw: st.DrawFn) -> tuple[MetricSet, list[Value | None]]:
    kinds = draw(st.text("nbt", max_size=6) | st.text("n", max_size=6))
    metrics = metric_set(tuple(f"m{n}" for n in range(len(kinds))), kinds)
    return metrics, [draw(st.none() | BY_KIND[kind]) for kind in kinds]


@st.composite
def rows(draw: st.DrawFn) -> list[ReadingRow]:
    found = []
    for offset in range(draw(st.integers(1, 5))):
        metrics, values = draw(measured())
        time_ms = draw(st.integers(-62_135_596_800_000, 253_402_300_799_999))
        flags = draw(st.integers(0, 2**15 - 1))
        found.append(
            ReadingRow(
                shard_of("d"), offset + 1, device_key("d"), time_ms, draw(int64), flags, metrics, values
            )
        )
    return found


def same(a: Value | None, b: Value | None) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isnan(a) if math.isnan(b) else (a, math.copysign(1, a)) == (b, math.copysign(1, b))
    return type(a) is type(b) and a == b


@pytest.mark.database
async def test_any_reading_comes_back_as_it_went_in(postgres_store: Store) -> None:
    log = postgres_store.log(await postgres_store.members.join("a"))
    assert isinstance(log, PgLog)
    from asyncio import get_running_loop, run_coroutine_threadsafe, to_thread

    loop = get_running_loop()
    head = 0

    async def round_trip(given_rows: list[ReadingRow]) -> None:
        nonlocal head
        numbered = [row._replace(offset=head + n) for n, row in enumerate(given_rows, 1)]
        await log.commit(Commit(readings=numbered))
        [found] = await log.load(["d"])
        back = found.tail[head:]
        head += len(numbered)
        assert len(back) == len(numbered)
        for row, told in zip(numbered, back, strict=True):
            assert (told.offset, told.time_ms, told.key, told.flags) == (row[1], row[3], row[4], row[5])
            assert told.metric_set is row.metric_set
            assert all(same(a, b) for a, b in zip(told.values, row.values, strict=True)), (told, row)

    # Hypothesis calls plain functions; the connection lives in this loop.
    @settings(suppress_health_check=list(HealthCheck))
    @given(rows())
    def each(given_rows: list[ReadingRow]) -> None:
        run_coroutine_threadsafe(round_trip(given_rows), loop).result(30)

    await to_thread(each)


@given(measured())
def test_values_are_split_and_joined_by_position(made: tuple[MetricSet, list[Value | None]]) -> None:
    metrics, values = made
    pairs = list(zip(metrics.kinds, values, strict=True))
    numbers = [None if v is None else float(v) for kind, v in pairs if kind != TEXT]  # type: ignore[arg-type]
    strings = [v for kind, v in pairs if kind == TEXT]
    back = decode_values(metrics, numbers, strings)  # type: ignore[arg-type]
    assert all(same(a, b) for a, b in zip(back, values, strict=True))


@pytest.mark.parametrize(
    "row",
    [
        reading("d", 1, mode="a\0b"),
        reading("d", 1, mode="\ud800"),
        reading("d", 1, time_ms=2**62),
        reading("d", 1, key=2**63),
        reading("d", 1)._replace(flags=2**15),
        reading("d", 1)._replace(values=["text for a number"]),
        reading("d", 1)._replace(values=[]),
        reading("d", 1)._replace(values=[1.0, 2.0]),
        reading("d", 1, mode="x")._replace(values=[1.0]),
        reading("d", 1, time_ms=2**62, mode="x"),
    ],
    ids=lambda row: repr(row.values) + str(row.time_ms),
)
def test_what_does_not_fit_is_refused(row: ReadingRow) -> None:
    with pytest.raises(InvalidMessage):
        encode_readings([reading("d", 1), row])


def test_the_fast_path_and_the_general_one_agree() -> None:
    fast = encode_readings([reading("d", 7, NOON_MS, 5, a=1.5, b=-2.0)])
    general_set = reading("d", 1, a=1.5, b=-2.0).metric_set
    general = MetricSet(general_set.names, general_set.kinds)
    general.only_numbers = False
    row = reading("d", 7, NOON_MS, 5, a=1.5, b=-2.0)._replace(metric_set=general)
    assert encode_readings([row]) == fast


# What may stand in a row: mostly what a device gives, now and then what it must not.
loose = st.floats() | st.none() | st.booleans() | st.integers() | texts
integers = int64 | st.integers()


@st.composite
def loose_rows(draw: st.DrawFn) -> list[ReadingRow]:
    row_lists = draw(rows())
    broken = draw(st.sampled_from([*ReadingRow._fields, None, None, None]))
    if broken is not None and broken != "metric_set":
        value = draw(st.lists(loose, max_size=4) if broken == "values" else integers)
        row_lists[-1] = row_lists[-1]._replace(**{broken: value})
    return row_lists


@given(loose_rows())
def test_the_c_module_packs_what_its_twin_packs(given_rows: list[ReadingRow]) -> None:
    native = pytest.importorskip("sensorium.storage._rows", exc_type=ImportError)

    def outcome(pack: Any) -> object:
        try:
            return pack(given_rows, _reading)
        except InvalidMessage as error:
            return str(error)

    assert outcome(native.pack_readings) == outcome(_rows_py.pack_readings)


def test_the_c_module_passes_on_what_goes_wrong() -> None:
    native = pytest.importorskip("sensorium.storage._rows", exc_type=ImportError)
    row = reading("d", 1, mode="x")
    with pytest.raises(ZeroDivisionError):
        native.pack_readings([row], lambda row: 1 // 0)
    with pytest.raises(TypeError):
        native.pack_readings([row], lambda row: "no bytes")
    with pytest.raises(TypeError):
        native.pack_readings(None, _reading)
    with pytest.raises(AttributeError):
        native.pack_readings([row._replace(metric_set=None)], _reading)
