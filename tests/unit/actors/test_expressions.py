"""Rules written as expressions: what each stands for, and where the errors point."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensorium.actors.conditions import validate
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.expressions import MAX_CHARACTERS, Parsed, parse_expression, parse_time
from sensorium.actors.rules import (
    All,
    AnomalyScore,
    Changed,
    Either,
    NoData,
    Not,
    Operator,
    Range,
    RateOfChange,
    Reference,
    RuleSpec,
    Threshold,
    Times,
    WindowAggregate,
    ZScore,
)
from sensorium.actors.written_rules import rule_spec

GT, GE, LT, LE, EQ, NE = (Operator(sign) for sign in (">", ">=", "<", "<=", "==", "!="))
A, B, C = (Threshold(name, GT, 1.0) for name in "abc")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("temperature > 30", Threshold("temperature", GT, 30.0)),
        ("30 < temperature", Threshold("temperature", GT, 30.0)),
        ("t >= -1.5e3", Threshold("t", GE, -1500.0)),
        ("t = 1", Threshold("t", EQ, 1.0)),
        ("door == true", Threshold("door", EQ, True)),
        ("mode != 'auto'", Threshold("mode", NE, "auto")),
        ('mode == "a and b"', Threshold("mode", EQ, "a and b")),
        ("`oil temp/1` > 3", Threshold("oil temp/1", GT, 3.0)),
        ("motor.bearing > 3", Threshold("motor.bearing", GT, 3.0)),
        ("t between 3 and 5", Range("t", 3.0, 5.0, inside=True)),
        ("not t between 3 and 5", Not(Range("t", 3.0, 5.0, inside=True))),
        ("avg(h, '15m') < 40", WindowAggregate("h", "mean", LT, 40.0, 900.0)),
        ("count(h) > 3", WindowAggregate("h", "count", GT, 3.0)),
        ("40 > max(h, '1h30m')", WindowAggregate("h", "max", LT, 40.0, 5400.0)),
        ("stddev(h, '1d') > metadata.noise", WindowAggregate("h", "stddev", GT, Reference("noise"), 86400.0)),
        ("rate(t) > 2", RateOfChange("t", 2.0, GT, "up")),
        ("rate(t) < -2", RateOfChange("t", 2.0, GT, "down")),
        ("zscore(t, '1h') > 4", ZScore("t", 4.0, 3600.0)),
        ("anomaly(t) >= 0.8", AnomalyScore("t", 0.8)),
        ("changed(door)", Changed("door")),
        ("no data for '15m'", NoData(900.0)),
        ("t > metadata.limit", Threshold("t", GT, Reference("limit"))),
        ("t > twin.desired.a.b", Threshold("t", GT, Reference(twin="desired.a.b"))),
        ("t > 2 * twin.reported.a + 1", Threshold("t", GT, Reference(None, None, 2.0, 1.0, "reported.a"))),
        ("t > twin.a", Threshold("t", GT, Reference(metric="twin.a"))),
        ("t > metadata.limit - 5", Threshold("t", GT, Reference("limit", offset=-5.0))),
        ("t > 2 * metadata.limit + 1", Threshold("t", GT, Reference("limit", factor=2.0, offset=1.0))),
        ("t > metadata.limit * 2", Threshold("t", GT, Reference("limit", factor=2.0))),
        ("inlet > outlet", Threshold("inlet", GT, Reference(metric="outlet"))),
        ("inlet > outlet + 5", Threshold("inlet", GT, Reference(metric="outlet", offset=5.0))),
        ("a > 1 and b > 1 or c > 1", Either([All([A, B]), C])),
        ("a > 1 and (b > 1 or c > 1)", All([A, Either([B, C])])),
        ("not (a > 1)", Not(A)),
    ],
)  # fmt: skip
def test_stands_for_a_condition(text, condition):
    assert parse_expression(text) == Parsed(condition)
    validate(rule_spec({"name": "x", "expression": text}))


def test_how_long_and_how_often():
    assert parse_expression("t > 1 for '5m'") == Parsed(Threshold("t", GT, 1.0), 300.0)
    assert parse_expression("t > 1 3 times within '1h'") == Parsed(Threshold("t", GT, 1.0), 0.0, (3, 3600.0))
    spec = rule_spec({"name": "x", "expression": "t > 1 3 times within '1h'", "clear": "t < 0"})
    assert (spec.times, spec.clear) == (Times(3, 3600.0), Threshold("t", LT, 0.0))


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 1),
        ("temperature", 12),
        ("temperature >", 14),
        ("temperature >> 30", 14),
        ("temperature > 30 and", 21),
        ("temperature > 30 extra", 18),
        ("(temperature > 30", 18),
        ("temperature ~ 30", 13),
        ("30 > 20", 1),
        ("'a' == 'b'", 1),
        ("t > for", 5),
        ("median(t) > 3", 1),
        ("avg(t, 15m) > 3", 8),
        ("avg(t, '15 parsecs') > 3", 8),
        ("avg(t) > 'high'", 1),
        ("t > changed(t)", 5),
        ("rate(t, '5m') > 1", 7),
        ("zscore(t) < 3", 1),
        ("anomaly(t) < 0.5", 1),
        ("anomaly(t) > 2", 1),
        ("t > 1 and anomaly(t, '1h') > 0.5", 20),
        ("t > 1 for 5", 11),
        ("t > 1 2.5 times within '5m'", 7),
        ("t > 1e999", 5),
        ("__import__('os')", 1),
        ("t > 1; drop", 6),
        ("((((((((((((((((t > 1))))))))))))))))", 17),
        ("x" * (MAX_CHARACTERS + 1), MAX_CHARACTERS),
    ],
)
def test_errors_point_at_the_column(text, column):
    with pytest.raises(InvalidMessage) as refused:
        parse_expression(text)
    assert str(refused.value).partition(": ")[0] == f"column {column}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("1h30m", 5400.0), ("250ms", 0.25), ("1.5h", 5400.0), ("2 d", 172_800.0)],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 parsecs", "-5m", "5m!"])
def test_what_is_no_time(text):
    assert parse_time(text) is None


WORDS = ["t", "and", "or", "not", "for", "'5m'", "(", ")", ">", "==", "3", "-", "*", "avg", ",", "metadata.a",
         "between", "times", "within", "no", "data", "true", "'x'", "`q q`", "rate", "changed"]  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)))
@example("no")
@example("no data")
@example("t > 1 3")
def test_any_text_is_a_rule_or_a_documented_error(text):
    try:
        parsed = parse_expression(text)
    except InvalidMessage as error:
        column = int(str(error).split(":")[0].removeprefix("column "))
        assert 1 <= column <= len(text) + 1
    else:
        assert isinstance(parsed.condition, RuleSpec.__annotations__["condition"])
