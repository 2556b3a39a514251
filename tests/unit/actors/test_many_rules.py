"""Many rules at one device: found by an index, and judged as if each were asked at each reading."""

from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.rules import Operator, Range, Threshold
from tests.unit.actors.driving import T0_MS, Driver, around_of, make_rule

METRICS = ("a", "b")
numbers = st.integers(-4, 4).map(float)
readings = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(METRICS, numbers)), max_size=15)
thresholds = st.builds(Threshold, st.sampled_from(METRICS), st.sampled_from(list(Operator)), numbers)
ranges = st.builds(
    lambda metric, ends, inside: Range(metric, min(ends), max(ends), inside),
    st.sampled_from(METRICS),
    st.tuples(numbers, numbers),
    st.booleans(),
)
rules = st.lists(
    st.tuples(thresholds | ranges, st.none() | numbers, st.sampled_from([0.0, 0.0, 2.0])), max_size=12
)
COMPARE = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def says(condition, values):
    value = values.get(condition.metric)
    if value is None:
        return None
    if isinstance(condition, Range):
        return (condition.low <= value <= condition.high) is condition.inside
    return COMPARE[condition.operator.value](value, condition.value)


class Naive:
    """One rule, asked at each reading."""

    def __init__(self, rule):
        self.rule, self.active, self.since_s = rule, False, None

    def take(self, values, second):
        spec = self.rule.spec
        holds = says(spec.condition, values)
        if holds and not self.active:
            if spec.for_s:
                self.since_s = second if self.since_s is None else self.since_s
                if second - self.since_s < spec.for_s:
                    return None
            self.active, self.since_s = True, None
            return (self.rule.rule_id, "ACTIVE", second)
        if holds is False:
            self.since_s = None
            if self.active and (spec.clear is None or says(spec.clear, values)):
                self.active = False
                return (self.rule.rule_id, "CLEARED", second)
        return None


@given(rules, readings)
def test_the_same_alarms_as_by_asking_each(written, history):
    made = [
        make_rule(
            condition,
            f"r{n}",
            clear=None if clear is None else Threshold(condition.metric, Operator.LT, clear),
            for_s=for_s,
        )
        for n, (condition, clear, for_s) in enumerate(written)
    ]
    driver, naive, expected = Driver(around_of(*made)), [Naive(rule) for rule in made], []
    for second, values in enumerate(history):
        # Timers do not fire here: only readings tell.
        if values:
            driver.read(values, second * 1000)
            expected += [said for rule in naive if (said := rule.take(values, second)) is not None]
    found = [
        (
            alarm.rule_id,
            alarm.state,
            ((alarm.start_ms if alarm.state == "ACTIVE" else alarm.end_ms) - T0_MS) // 1000,
        )
        for alarm in driver.log.alarms
    ]
    assert found == expected
