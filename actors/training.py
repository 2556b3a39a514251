"""Training at work: the devices of a type in parts, each learnt by a Ray task that reads the stored past.

The tasks read and answer; what is made of the answers is kept by the caller.
"""

import asyncio
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import ray

from sensorium.actors.errors import InvalidMessage, NoHistory
from sensorium.actors.models.info import MAX_METRICS, Kind, ModelInfo, check_name
from sensorium.actors.past import Past, StoredPast
from sensorium.actors.ports import Filter
from sensorium.actors.ray_tasks import as_task, results_of
from sensorium.actors.records import Registration

if TYPE_CHECKING:
    from sensorium.actors.fleet import Fleet
    from sensorium.actors.models.learning import DeviceReference, Labelled
    from sensorium.actors.models.outliers import OutlierModel

MAX_DEVICES: Final = 5_000
PART_DEVICES: Final = 5
MAX_TOLD: Final = 50
"""Lines of `ModelInfo.left_out`; the others are counted."""
COMMON_SHARE: Final = 0.5
"""Of the devices that must have a metric which nobody asked for by name."""


class Training(msgspec.Struct, frozen=True):
    """What to learn.

    Attributes:
        name: of the model.
        device_type: of the devices; `which` narrows them further.
        metrics: of the readings; none: for outliers those that at least half of the devices have.
        rule_id: for failures, the rule whose alarms were the failures …
        before_s: … and how long before them a window is one to be recognised.
        window: readings of a window.
    """

    name: str
    kind: Kind
    device_type: str
    since_ms: int
    until_ms: int
    metrics: tuple[str, ...] = ()
    which: Filter = Filter()
    rule_id: str = ""
    before_s: float = 7_200.0
    window: int = 64


class Progress(NamedTuple):
    """How far a training is. `rows` are the readings or windows so far."""

    devices_done: int
    devices: int
    rows: int


class Trained(NamedTuple):
    """What came of it, for a registry: `info` without version. `fitted` is an `outliers.OutlierModel`, or for
    failures the pipeline of a `fitting.Fit`."""

    info: ModelInfo
    fitted: Any


def check(training: Training) -> None:
    """Raises `InvalidMessage` for what can never be trained."""
    check_name(training.name)
    if training.since_ms >= training.until_ms:
        raise InvalidMessage("the time to train on is empty: it ends before it begins")
    if len(training.metrics) > MAX_METRICS or len(set(training.metrics)) < len(training.metrics):
        raise InvalidMessage(f"metrics: at most {MAX_METRICS}, each once")
    if training.kind == "failure":
        from sensorium.actors.models.failure import MAX_STATE
        from sensorium.actors.models.features import MIN_WINDOW

        if not training.metrics or not training.rule_id:
            raise InvalidMessage(
                "a failure model needs its metrics, and the rule whose alarms are the failures"
            )
        most = MAX_STATE // len(training.metrics)
        if not MIN_WINDOW <= training.window <= most:
            raise InvalidMessage(
                f"window: {training.window} readings; from {MIN_WINDOW} to {most} are possible"
            )
        if training.before_s <= 0:
            raise InvalidMessage("before: it has to be longer than nothing")


def train(fleet: "Fleet", training: Training) -> Generator[Progress | Trained, None, None]:
    """Run it; yields how far it is, at first 0, and the model at last. Closing it ends the work.

    Raises:
        InvalidMessage: it can never be trained, or not on what is stored; the message says what is missing.
        NoHistory: no device matches, or none has a reading in the time.
        LogUnavailable: the database does not answer.
    """
    check(training)
    past = fleet.past()
    devices: list[Registration] = results_of(as_task(_devices_in_task).remote(past, training))
    parts = [devices[start : start + PART_DEVICES] for start in range(0, len(devices), PART_DEVICES)][::-1]
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    slots = max(1, int(resources.get("CPU", 1)))
    task = as_task(_learn_in_task)
    running: list[Any] = []
    learnt: list[Any] = []
    rows = 0
    try:
        yield Progress(0, len(devices), 0)
        while parts or running:
            while parts and len(running) <= slots:
                running.append(task.remote(past, training, parts.pop()))
            done, running = ray.wait(running)
            for part in results_of(done):
                learnt += part
                rows += sum(one.rows if hasattr(one, "rows") else len(one.labels) for one in part)
            yield Progress(len(learnt), len(devices), rows)
    finally:
        for ref in running:
            ray.cancel(ref)
    learnt.sort(key=lambda one: one.device_id)
    yield results_of(as_task(_finish_in_task).remote(training, learnt))


async def devices_of(stored: StoredPast, training: Training) -> list[Registration]:
    """The devices to learn from.

    Raises:
        InvalidMessage: there are more than `MAX_DEVICES`.
        NoHistory: there is none, or none has a reading in the time.
    """
    which = training.which._replace(device_type=training.device_type)
    found = await stored.devices(which, MAX_DEVICES + 1)
    if len(found) > MAX_DEVICES:
        raise InvalidMessage(f"more than {MAX_DEVICES} devices match; choose fewer")
    if not found:
        raise NoHistory(f"no device of type {training.device_type!r} matches")
    ids = [registration.device_id for registration in found]
    if not await stored.has_readings(ids, training.since_ms, training.until_ms):
        raise NoHistory(f"none of these {len(ids)} devices has a reading in the time to train on")
    return found


async def learn(
    stored: StoredPast, training: Training, devices: Sequence[Registration]
) -> "list[DeviceReference] | list[Labelled]":
    """What each of the devices teaches."""
    from sensorium.actors.models.fitting import VALIDATION_SHARE
    from sensorium.actors.models.learning import Rows, labelled, reference

    references: list[DeviceReference] = []
    windows: list[Labelled] = []
    before_ms = round(training.before_s * 1000)
    for registration in devices:
        device_id = registration.device_id
        rows = Rows(training.metrics or None)
        await stored.readings(device_id, training.since_ms, training.until_ms, rows.take)
        if training.kind == "outliers":
            references.append(reference(device_id, rows))
            continue
        failures = await stored.alarm_times(
            device_id, training.rule_id, training.since_ms, training.until_ms + before_ms
        )
        windows.append(labelled(device_id, rows, failures, before_ms, training.window, VALIDATION_SHARE))
    return windows if training.kind == "failure" else references


def finish(training: Training, learnt: Sequence[Any], now_ms: int) -> Trained:
    """Make the model of what the devices taught. Raises `InvalidMessage` where that is too little."""
    used = [one for one in learnt if not one.reason]
    lines = [f"{one.device_id}: {one.reason}" for one in learnt if one.reason]
    if not used:
        raise InvalidMessage(f"none of {len(learnt)} devices has enough to learn from; {lines[0]}")
    if training.kind == "outliers":
        model, fewer = outliers_of(training, used)
        lines += fewer
        quick, slow, weight, drift, limit = model.settings
        settings: dict[str, float | str] = {
            "quick_readings": quick,
            "slow_readings": slow,
            "slow_weight": weight,
            "drift_share": drift,
            "limit": limit,
        }
        features = tuple(f"mean({m}, {span} readings)" for m in model.metrics for span in (quick, slow))
        rows, scores, metrics, fitted = sum(one.rows for one in used), {}, model.metrics, model
        devices = len(model.device_ids)
    else:
        from sensorium.actors.models.features import feature_names

        fit = _fit(used)
        settings = {"window": training.window, "before_s": training.before_s, "rule_id": training.rule_id}
        features, scores, fitted = tuple(feature_names(training.metrics)), fit.scores, fit.pipeline
        rows, metrics, devices = sum(len(one.labels) for one in used), training.metrics, len(used)
    told = lines[:MAX_TOLD] + ([f"… and {len(lines) - MAX_TOLD} more"] if len(lines) > MAX_TOLD else [])
    info = ModelInfo(
        training.name,
        0,
        training.kind,
        training.device_type,
        tuple(metrics),
        features,
        now_ms,
        training.since_ms,
        training.until_ms,
        devices,
        rows,
        tuple(told),
        scores,
        settings,
    )
    return Trained(info, fitted)


def outliers_of(training: Training, learnt: "Sequence[DeviceReference]") -> "tuple[OutlierModel, list[str]]":
    """The model over the metrics that were asked for, or that enough devices have, and who was left out."""
    from sensorium.actors.models.outliers import OutlierModel, Reference

    counts: dict[str, int] = {}
    for one in learnt:
        for metric in one.metrics:
            counts[metric] = counts.get(metric, 0) + 1
    metrics = training.metrics
    if missing := [m for m in metrics if m not in counts]:
        raise InvalidMessage(
            f"no device has enough readings of {', '.join(missing)};"
            f" there are {', '.join(sorted(counts)[:10])}"
        )
    metrics = metrics or tuple(m for m in sorted(counts) if counts[m] >= COMMON_SHARE * len(learnt))
    if not 1 <= len(metrics) <= MAX_METRICS:
        raise InvalidMessage(f"{len(metrics)} metrics are common to the devices; name 1 to {MAX_METRICS}")
    references, lines = {}, [f"{m}: only {counts[m]} devices have it" for m in counts if m not in metrics]
    for one in learnt:
        lacking = [m for m in metrics if m not in one.metrics]
        if lacking or one.reference is None:
            lines.append(f"{one.device_id}: too few readings of {', '.join(lacking)}")
            continue
        order = [one.metrics.index(m) for m in metrics]
        level, unit = one.reference
        references[one.device_id] = Reference(level[order], unit[:, order])
    if not references:
        raise InvalidMessage(f"no device has enough readings of all of {', '.join(metrics)}")
    return OutlierModel(metrics, references), lines


def _fit(learnt: "Sequence[Labelled]") -> Any:
    import numpy as np

    from sensorium.actors.models.fitting import fit_failure

    return fit_failure(
        np.concatenate([one.features for one in learnt]),
        np.concatenate([one.labels for one in learnt]),
        np.concatenate([one.later for one in learnt]),
    )


def _devices_in_task(past: Past, training: Training) -> list[Registration]:
    async def run() -> list[Registration]:
        stored = await past.open_past()
        try:
            return await devices_of(stored, training)
        finally:
            await stored.close()

    return asyncio.run(run())


def _learn_in_task(past: Past, training: Training, devices: Sequence[Registration]) -> Any:
    async def run() -> Any:
        stored = await past.open_past()
        try:
            return await learn(stored, training, devices)
        finally:
            await stored.close()

    return asyncio.run(run())


def _finish_in_task(training: Training, learnt: Sequence[Any]) -> Trained:
    return finish(training, learnt, time.time_ns() // 1_000_000)
