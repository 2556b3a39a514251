"""Tests of what detectors find, and which detectors conditions need."""

from collections.abc import Iterator, Sequence
from typing import Any

from sensorium.actors.conditions.kinds import AnomalyScore, AnyCondition, parts_of
from sensorium.actors.conditions.registry import Memory, Test, compiles, position_of
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.windows import Window


def needed_detectors(condition: AnyCondition) -> Iterator[tuple[str, str]]:
    """(metric, detector) that the condition looks at; "" for any detector."""
    if isinstance(condition, AnomalyScore):
        yield condition.metric, condition.detector or ""
    for _, part in parts_of(condition):
        yield from needed_detectors(part)


@compiles(AnomalyScore)
def _anomaly_score(condition: AnomalyScore, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    position = position_of(condition.metric, NUMBER, metrics)
    if position is None:
        return None
    metric, detector, score = condition.metric, condition.detector, condition.score

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        if values[position] is None or memory.detection is None:
            return None
        return memory.detection.reaches(metric, detector, score)

    return test
