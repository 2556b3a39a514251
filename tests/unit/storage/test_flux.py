"""The Flux that history is read with, word for word; and that nothing from outside leaves its quotes."""

import pytest

from sensorium.storage import flux
from sensorium.storage.archive import NEVER_NS, Question

START_NS = 1_704_110_400_000_000_007
END_NS = 1_704_114_000_000_000_000


def test_points_of_chosen_metrics() -> None:
    assert flux.points("b", "d1", START_NS, END_NS, ["t", "quality"], 11, False) == (
        'from(bucket: "b")\n'
        "  |> range(start: 2024-01-01T12:00:00.000000007Z, stop: 2024-01-01T13:00:00.000000000Z)\n"
        '  |> filter(fn: (r) => r["_measurement"] == "sensor_data" and r["device_id"] == "d1")\n'
        '  |> filter(fn: (r) => r["_field"] == "t" or r["_field"] == "metric_quality")\n'
        "  |> limit(n: 11)\n"
        "  |> map(fn: (r) => ({r with ns: int(v: r._time)}))"
    )


def test_the_newest_points_of_all_metrics_and_what_is_remarkable_of_them() -> None:
    text = flux.points("b", "d1", START_NS, END_NS, None, 11, True)
    assert '\n  |> filter(fn: (r) => r["_field"] != "quality")\n  |> tail(n: 11)\n' in text
    assert flux.qualities("b", "d1", START_NS, END_NS).splitlines()[3:] == [
        '  |> filter(fn: (r) => r["_field"] == "quality")',
        '  |> filter(fn: (r) => r["_value"] > 0)',
        "  |> map(fn: (r) => ({r with ns: int(v: r._time)}))",
    ]


def test_means_by_the_hour_of_a_device() -> None:
    question = Question("d1", None, ["t"], "mean", 3_600_000_000_000)
    every = "every: 3600000000000ns"
    end = 'createEmpty: false, timeSrc: "_start")'
    assert flux.aggregate("b", question, START_NS, END_NS, False) == (
        'import "types"\n\n'
        'data = from(bucket: "b")\n'
        "  |> range(start: 2024-01-01T12:00:00.000000007Z, stop: 2024-01-01T13:00:00.000000000Z)\n"
        '  |> filter(fn: (r) => r["_measurement"] == "sensor_data" and r["device_id"] == "d1")\n'
        '  |> filter(fn: (r) => r["_field"] == "t")\n\n'
        'numbers = data |> filter(fn: (r) => types.isType(v: r._value, type: "float"))\n\n'
        'bools = data |> filter(fn: (r) => types.isType(v: r._value, type: "bool")) |> toFloat()\n\n'
        f'numbers |> aggregateWindow({every}, fn: sum, {end} |> yield(name: "numbers.sum")\n\n'
        f'numbers |> aggregateWindow({every}, fn: count, {end} |> yield(name: "numbers.count")\n\n'
        f'bools |> aggregateWindow({every}, fn: sum, {end} |> yield(name: "bools.sum")\n\n'
        f'bools |> aggregateWindow({every}, fn: count, {end} |> yield(name: "bools.count")'
    )


def test_the_last_values_of_a_type_by_the_minute_and_as_a_whole() -> None:
    question = Question(None, "pump", ["mode"], "last", 60_000_000_000)
    lines = flux.aggregate("b", question, START_NS, END_NS, False).split("\n\n")
    assert 'and r["sensor_type"] == "pump")' in lines[1]
    assert lines[4] == 'texts = data |> filter(fn: (r) => types.isType(v: r._value, type: "string"))'
    assert lines[5:] == [
        f'{kind} |> window(every: 60000000000ns) |> last() |> yield(name: "{kind}.last")'
        for kind in ("numbers", "bools", "texts")
    ]
    whole = flux.aggregate("b", question._replace(every_ns=None), START_NS, END_NS, True)
    assert whole.endswith(
        'texts |> last() |> yield(name: "texts.last")\n\ntexts |> first() |> yield(name: "texts.first")'
    )


def test_percentiles_need_every_value() -> None:
    question = Question("d", None, None, "p95", 60_000_000_000)
    lines = flux.aggregate("b", question, START_NS, END_NS, True).split("\n\n")
    assert lines[-2:] == [
        f'{kind} |> limit(n: 500001) |> yield(name: "{kind}.raw")' for kind in ("numbers", "bools")
    ]


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("plain", '"plain"'),
        ('x") |> drop() //', '"x\\") |> drop() //"'),
        ("a\\", '"a\\\\"'),
        ("${r._value}", '"\\${r._value}"'),
        ("$\\{x}\n", '"$\\\\{x}\\n"'),
    ],
)
def test_whatever_is_quoted_stays_in_its_quotes(text: str, literal: str) -> None:
    assert flux.quoted(text) == literal


def test_moments_are_in_the_range_of_points() -> None:
    assert flux.moment(-1) == "1969-12-31T23:59:59.999999999Z"
    assert flux.moment(-(2**70)) == flux.moment(NEVER_NS) == "1678-01-01T00:00:00.000000000Z"
    assert flux.moment(2**70).startswith("226")
