"""The models at work in a host: they judge the readings of a batch before it commits, many devices a call.

Their findings commit with the readings that led to them, so they are found once, and a replay of the same
readings leads to the same memory. A model that fails is taken from work in this host and does not hold the
batch up.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from sensorium.actors.messages import ReadingFlag
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.modelled import NEVER_MS, Modelled, ModelMemory
from sensorium.actors.models.features import Floats
from sensorium.actors.models.info import ActiveModel
from sensorium.actors.models.plain import decode
from sensorium.actors.models.scorer import Scorer
from sensorium.actors.records import Commit, ReadingRow, TailReading

if TYPE_CHECKING:
    from sensorium.actors.device import Device

THRESHOLD: Final = 0.5
LARGEST: Final = 1e100
MAX_SETS: Final = 4_096
"""Metric sets whose columns a model remembers."""

Row = ReadingRow | TailReading


class Bound:
    """A model at work for one device type."""

    def __init__(self, active: ActiveModel) -> None:
        self.label = active.info.label
        self.device_type = active.info.device_type
        self.scorer: Scorer = decode(active.numbers)
        self._columns: dict[MetricSet, list[int]] = {}

    def row(self, row: Row) -> list[float] | None:
        """The numbers that the model looks at, NaN where one is missing; None when all are."""
        metrics = row.metric_set
        columns = self._columns.get(metrics)
        if columns is None:
            if len(self._columns) >= MAX_SETS:
                self._columns.clear()
            columns = self._columns[metrics] = [
                metrics.index[m] if m in metrics.index and metrics.kinds[metrics.index[m]] == NUMBER else -1
                for m in self.scorer.metrics
            ]
        values = row.values
        numbers = [
            float(v)
            if at >= 0 and at < len(values) and (v := values[at]) is not None and -LARGEST < v < LARGEST  # type: ignore[operator]
            else np.nan
            for at in columns
        ]
        return numbers if any(n == n for n in numbers) else None


class _Seen(NamedTuple):
    """A device with the rows that a model has not seen."""

    device: "Device"
    memory: ModelMemory
    reference: int
    rows: list[tuple[int, list[float]]]


class ModelBook:
    """All models at work. `broken` has what was taken from work for a fault, with the fault."""

    def __init__(self, active: Iterable[ActiveModel] = ()) -> None:
        self.by_type: dict[str, dict[str, Bound]] = {}
        self.broken: dict[str, str] = {}
        self.judged = 0
        """Readings, once for each model."""
        for one in active:
            try:
                bound = Bound(one)
            except Exception as error:  # it was checked when it was set to work; another release may differ
                self.broken[one.info.label] = f"{type(error).__name__}: {error}"
            else:
                self.by_type.setdefault(bound.device_type, {})[bound.label] = bound

    def statistics(self) -> dict[str, Any]:
        """Gauges and counters, by name."""
        at_work = sorted(label for bounds in self.by_type.values() for label in bounds)
        return {"models": at_work, "models_broken": dict(self.broken), "model_judgements": self.judged}

    def judge(self, touched: Iterable["Device"], effects: Commit) -> None:
        """Judge the readings of `effects`, and add to them what is found."""
        devices: dict[int, Device] = {}
        for device in touched:
            if device.registration is None or device.registration.status != "active":
                continue
            bounds = self.by_type.get(device.registration.device_type)
            if device.modelled is not None:
                device.modelled.fit(device, bounds or {}, effects)
                if not bounds:
                    device.modelled = None
            if bounds:
                devices[device.key] = device
        if not devices:
            return
        rows: dict[int, list[Row]] = {}
        for row in effects.readings:
            if row.device in devices and not row.flags & ReadingFlag.LATE:
                rows.setdefault(row.device, []).append(row)
        self._judge({devices[key]: own for key, own in rows.items()}, effects)

    def catch_up(self, activated: Iterable["Device"]) -> None:
        """Let the models see what the log had after the snapshots. Emits nothing."""
        missed: dict[Device, Sequence[Row]] = {}
        for device in activated:
            if device.modelled is not None and device.modelled.missed:
                late = ReadingFlag.LATE
                missed[device] = [row for row in device.modelled.missed if not row.flags & late]
                device.modelled.missed = ()
        self._judge(missed, None)

    def _judge(self, rows: Mapping["Device", Sequence[Row]], effects: Commit | None) -> None:
        groups: dict[str, list[Device]] = {}
        for device in rows:
            assert device.registration is not None
            groups.setdefault(device.registration.device_type, []).append(device)
        for device_type, devices in groups.items():
            for label, bound in list(self.by_type.get(device_type, {}).items()):
                try:
                    self._judge_by(bound, devices, rows, effects)
                except Exception as error:  # a model's fault must not cost readings
                    del self.by_type[device_type][label]
                    self.broken[label] = f"{type(error).__name__}: {error}"

    def _judge_by(
        self,
        bound: Bound,
        devices: Sequence["Device"],
        rows: Mapping["Device", Sequence[Row]],
        effects: Commit | None,
    ) -> None:
        scorer = bound.scorer
        seen = []
        for device in devices:
            if device.modelled is None:
                device.modelled = Modelled()
            memory = device.modelled.memories.get(bound.label)
            reference = scorer.reference(device.id)
            if memory is not None and isinstance(memory.numbers, bytes):
                memory.numbers = np.frombuffer(memory.numbers, dtype=np.float64).copy()
            if memory is None or len(memory.numbers) != scorer.state_size:
                memory = ModelMemory(bound.label, scorer.begin([reference])[0], NEVER_MS)
                device.modelled.memories[bound.label] = memory
            own = []
            last_ms = memory.last_ms
            for row in rows[device]:
                if row.time_ms >= last_ms and (numbers := bound.row(row)) is not None:
                    last_ms = row.time_ms
                    own.append((row.time_ms, numbers))
            if own:
                memory.last_ms = last_ms
                seen.append(_Seen(device, memory, reference, own))
        seen.sort(key=lambda one: -len(one.rows))
        for turn in range(len(seen[0].rows) if seen else 0):
            while len(seen[-1].rows) <= turn:
                seen.pop()
            self._turn(scorer, seen, turn, effects)
            self.judged += len(seen)

    def _turn(self, scorer: Scorer, seen: Sequence[_Seen], turn: int, effects: Commit | None) -> None:
        """One reading of each device."""
        states: Floats = np.stack([one.memory.numbers for one in seen])
        references = [one.reference for one in seen]
        scores = scorer.step(states, np.array([one.rows[turn][1] for one in seen]), references)
        for i, one in enumerate(seen):
            one.memory.numbers = states[i]
        odd = scores >= THRESHOLD
        for i in map(int, np.flatnonzero(odd)):
            device, memory, reference, rows = seen[i]
            time_ms, score = rows[turn][0], float(scores[i])
            explanation = scorer.explain(states[i], reference) if memory.asks(score, time_ms) else None
            memory.found(device, score, time_ms, explanation, effects)
        for i, one in enumerate(seen):
            if one.memory.episode is not None and scores[i] < THRESHOLD:
                one.memory.as_ever(one.device, effects)
