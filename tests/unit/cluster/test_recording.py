"""Recordings: which columns, which times, and how a bad row is told."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.cluster.errors import BadRecording, ConfigError
from sensorium.cluster.recording import Columns, Recording, Row, columns, time_ms

NAB = "timestamp,value\n2014-04-01 00:00:00,20.0\n2014-04-01 00:05:00,-1e3\n"
SKAB = (
    "datetime;Accelerometer1RMS;Current;anomaly\n"
    "2020-03-09 10:14:33;0.026588;0.330;0.0\n"
    "2020-03-09 10:14:34;0.026170;;1.0\n"
)
APRIL_MS = 1_396_310_400_000


def rows(tmp_path: Path, text: str, wanted: Columns, skip_bad: bool = False) -> list[Row]:
    file = tmp_path / "r.csv"
    file.write_text(text, encoding="utf-8")
    with Recording(file, wanted, skip_bad) as recording:
        return list(recording)


def test_one_metric_from_the_value_column(tmp_path: Path) -> None:
    wanted = columns("timestamp", ["temperature"], None, False, None)
    assert rows(tmp_path, NAB, wanted) == [
        Row(2, APRIL_MS, {"temperature": 20.0}),
        Row(3, APRIL_MS + 300_000, {"temperature": -1000.0}),
    ]


def test_several_columns_and_empty_cells(tmp_path: Path) -> None:
    wanted = columns("datetime", ["Current", "vibration=Accelerometer1RMS"], None, False, None)
    assert [row.values for row in rows(tmp_path, SKAB, wanted)] == [
        {"Current": 0.33, "vibration": 0.026588},
        {"vibration": 0.02617},
    ]
    everything = rows(tmp_path, SKAB, columns("datetime", [], None, True, ";"))
    assert list(everything[0].values) == ["Accelerometer1RMS", "Current", "anomaly"]


def test_a_byte_order_mark_quotes_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    text = "\ufefftimestamp,value\n\n'x'\n".replace("'x'", '"2014-04-01T02:00:00+02:00","true"')
    assert rows(tmp_path, text, Columns(metrics={"value": "m"})) == [Row(3, APRIL_MS, {"m": True})]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2014-04-01 00:00:00", APRIL_MS),
        ("2014-04-01T00:00:00Z", APRIL_MS),
        ("2014-03-31 19:00:00.250-05:00", APRIL_MS + 250),
        ("1396310400", APRIL_MS),
        ("1396310400.5", APRIL_MS + 500),
        ("1396310400000", APRIL_MS),
        ("2014-04-01", APRIL_MS),
    ],
)
def test_times(text: str, milliseconds: int) -> None:
    assert time_ms(text) == milliseconds


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_a_told_error(text: str) -> None:
    with suppress(BadRecording):
        assert isinstance(time_ms(text), int)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2014-04-01 00:00:00,abc", ":3: m: 'abc' is neither a number nor true or false"),
        ("2014-04-01 00:00:00,nan", ":3: m: 'nan' is not a finite number"),
        ("yesterday,1", ":3: 'yesterday' is no time"),
        ("2014-04-01 00:00:00", ":3: 1 fields where the header has 2"),
        ("2014-04-01 00:00:00,", ":3: no value"),
        ('2014-04-01 00:00:00,"1" 2', ":3: "),
    ],
)
def test_a_bad_row_is_named_or_passed_over(tmp_path: Path, row: str, said: str) -> None:
    text = f"timestamp,value\n1396310400,1\n{row}\n1396310401,2\n"
    wanted = Columns(metrics={"value": "m"})
    with pytest.raises(BadRecording) as caught:
        rows(tmp_path, text, wanted)
    assert said in str(caught.value)
    assert [r.values["m"] for r in rows(tmp_path, text, wanted, skip_bad=True)] == [1.0, 2.0]


def test_a_binary_file_or_a_missing_column_is_told(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_bytes(b"\x89PNG\xff\xfe\n\x00\x01")
    with pytest.raises(BadRecording, match=r"r\.csv:1: no column 'timestamp'"):
        Recording(file, Columns(metrics={"value": "m"})).__enter__()
    file.write_bytes(b"timestamp,value\n1,\xff\n2,3\n")
    with Recording(file, Columns(metrics={"value": "m"}), skip_bad=True) as recording:
        assert len(list(recording)) == 1
        assert recording.skipped == 1
        assert recording.bytes_read == recording.size_bytes == 24
    with pytest.raises(BadRecording, match="No such file"):
        Recording(tmp_path / "none.csv", Columns()).__enter__()


@pytest.mark.parametrize(
    ("metrics", "value_column", "all_columns"),
    [([], None, False), (["a", "b"], "v", False), (["a=b"], "v", False), (["a"], None, True)],
)
def test_contradictions_are_refused(metrics: list[str], value_column: str | None, all_columns: bool) -> None:
    with pytest.raises(ConfigError):
        columns("timestamp", metrics, value_column, all_columns, None)
