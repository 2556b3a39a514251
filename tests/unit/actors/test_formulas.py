"""Formulas: what is one, what they give, and where their mistakes are."""

import math

import pytest

from sensorium.actors.conditions.computed import Unknown, compile_formula
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.formulas import MAX_NODES, metrics_in, parse_formula
from sensorium.actors.metrics import metric_set
from sensorium.actors.profile import WindowSpec
from sensorium.actors.tokens import MAX_CHARACTERS
from sensorium.actors.windows import Window

METRICS = metric_set(("a", "b", "odd name", "on", "word"), "nnnbt")


class Memory:
    def __init__(self):
        self.latest = [1.0, 2.0, 3.0, True, "x"]
        self.latest_ms = [1000] * 5
        window = Window(WindowSpec(60.0, 1.0))
        for second, value in enumerate((4.0, 6.0), 1):
            window.observe([value, 1.0, 1.0, None, None], second * 1000)
        self.windows = (window,)
        self.metadata = {"limit": 10, "name": "x"}


def worked(text, *values, time_ms=3000):
    memory = Memory()
    formula = compile_formula(text, METRICS, memory.windows)
    return None if formula is None else formula.work([*values, *[None] * (5 - len(values))], time_ms, memory)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + b * 2", 5.0 + 3.0 * 2),
        ("(a + b) * 2", 16.0),
        ("a - b - 1", 1.0),
        ("a / b / 5", 5.0 / 3.0 / 5),
        ("-a ** 2", -25.0),
        ("2 ** b ** 0.5", 2 ** (3.0**0.5)),
        ("a * -b", -15.0),
        ("sqrt(a * 5) + abs(b - 10)", 12.0),
        ("least(a, b, 4) + greatest(a, b)", 8.0),
        ("round(a / b) + floor(a / b) + ceil(a / b)", 5.0),
        ("`odd name` + on", 4.0),
        ("a / metadata.limit", 0.5),
        ("avg(a)", 5.0),
        ("max(a, '1m') - min(a)", 2.0),
        ("count(a) + sum(a)", 18.0),
        ("before(a) * 10", 10.0),
        ("rate(a)", (5.0 - 1.0) / 2.0),
        ("a + 0 * (1 + 2 + 3)", 5.0),
    ],
)
def test_what_they_give(text, value):
    assert worked(text, 5.0, 3.0) == pytest.approx(value)


def test_what_a_reading_lacks_is_the_newest_value():
    assert worked("a + b", 5.0) == 7.0
    assert worked("avg(b) + a", 5.0) == 6.0


@pytest.mark.parametrize(
    "text", ["a / (b - 3)", "ln(b - 3)", "sqrt(b - 4)", "10 ** (b * 200)", "exp(b * 900)"]
)
def test_what_cannot_be_worked_out_raises(text):
    with pytest.raises((ArithmeticError, ValueError)):
        worked(text, 5.0, 3.0)


def test_infinity_and_nan_are_no_results():
    for value in (math.inf, math.nan, 1e308):
        with pytest.raises(OverflowError):
            worked("a * 10", value)


@pytest.mark.parametrize("text", ["a + metadata.name", "a + metadata.none", "rate(a)"])
def test_what_has_no_value_is_unknown(text):
    with pytest.raises(Unknown):
        worked(text, 5.0, 3.0, time_ms=1000)


@pytest.mark.parametrize("text", ["word + a", "other + a", "avg(on) + a", "avg(a, '2h')"])
def test_devices_that_lack_something_have_no_such_formula(text):
    assert worked(text, 5.0) is None


def test_the_metrics_that_it_names():
    assert metrics_in(parse_formula("a + avg(b, '5m') - rate(c) + metadata.x * a")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("a / 0", 3),
        ("a / (2 - 2)", 3),
        ("a + ln(0)", 5),
        ("a +", 4),
        ("a b", 3),
        ("(a", 3),
        ("foo(a)", 1),
        ("sqrt(a, b)", 1),
        ("least(a)", 1),
        ("avg(metadata.x)", 5),
        ("avg(a + b)", 7),
        ("a > b", 3),
        ("__import__('os')", 1),
        ("a.b.c()", 1),
        ("1e999 * a", 1),
        ("(" * 60 + "a" + ")" * 60, 33),
        ("a" + " + a" * MAX_NODES, 399),
        ("a" * (MAX_CHARACTERS + 1), MAX_CHARACTERS),
    ],
)
def test_mistakes_have_a_column(text, column):
    with pytest.raises(InvalidMessage, match=f"^column {column}: "):
        parse_formula(text)
