"""Models as plain numbers: how they travel to hosts. Decoding runs no code of what is decoded."""

from typing import Final

import msgspec
import numpy as np

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.failure import MAX_STATE, FailureModel
from sensorium.actors.models.features import MIN_WINDOW, Floats
from sensorium.actors.models.info import MAX_METRICS
from sensorium.actors.models.outliers import OutlierModel, Reference, Settings

MAX_BYTES: Final = 32 << 20

Model = OutlierModel | FailureModel


class _Outliers(msgspec.Struct, frozen=True, tag="outliers"):
    metrics: tuple[str, ...]
    device_ids: tuple[str, ...]
    levels: bytes
    units: bytes
    settings: Settings


class _Failure(msgspec.Struct, frozen=True, tag="failure"):
    metrics: tuple[str, ...]
    window: int
    mean: bytes
    scale: bytes
    weights: bytes
    intercept: float


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Outliers | _Failure).decode


def encode(model: Model) -> bytes:
    """The model's numbers. Raises `InvalidMessage` when they are more than `MAX_BYTES`."""
    plain: _Outliers | _Failure
    if isinstance(model, OutlierModel):
        levels, units = model.levels.tobytes(), model.units.tobytes()
        plain = _Outliers(model.metrics, model.device_ids, levels, units, model.settings)
    else:
        mean, scale, weights = (
            a.astype(np.float64).tobytes() for a in (model.mean, model.scale, model.weights)
        )
        plain = _Failure(model.metrics, model.window, mean, scale, weights, float(model.intercept))
    data = _encode(plain)
    if len(data) > MAX_BYTES:
        raise InvalidMessage(
            f"the model has {len(data):,} bytes, above {MAX_BYTES:,}: train on fewer devices"
        )
    return data


def decode(data: bytes) -> Model:
    """What `encode` gave. Raises `InvalidMessage` for anything else."""
    try:
        plain = _decode(data)
        check_metrics(plain.metrics)
        if isinstance(plain, _Outliers):
            return _outliers(plain)
        return failure_model(
            plain.metrics,
            plain.window,
            _array(plain.mean),
            _array(plain.scale),
            _array(plain.weights),
            plain.intercept,
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidMessage(f"these are not the numbers of a model: {error}") from error


def check_metrics(metrics: tuple[str, ...]) -> None:
    """Raises `ValueError` unless there are 1 to `MAX_METRICS` different ones."""
    if not 1 <= len(metrics) <= MAX_METRICS or len(set(metrics)) < len(metrics):
        raise ValueError(f"{len(metrics)} metrics, or one of them twice: 1 to {MAX_METRICS} are possible")


def outlier_model(
    metrics: tuple[str, ...], device_ids: tuple[str, ...], levels: Floats, units: Floats, settings: Settings
) -> OutlierModel:
    """From its arrays. Raises `ValueError` where they do not fit together."""
    if not device_ids or min(settings) < 0 or settings.quick < 1 or settings.slow < 1 or settings.limit <= 0:
        raise ValueError("no devices, or impossible settings")
    if levels.shape != (len(device_ids), len(metrics)) or units.shape != (len(device_ids), 2, len(metrics)):
        raise ValueError("the arrays do not go with the devices and metrics")
    if not np.isfinite(levels).all() or not np.isfinite(units).all() or units.min() <= 0:
        raise ValueError("a level or unit is not a possible number")
    references = {d: Reference(levels[i], units[i]) for i, d in enumerate(device_ids)}
    return OutlierModel(metrics, references, settings)


def failure_model(
    metrics: tuple[str, ...], window: int, mean: Floats, scale: Floats, weights: Floats, intercept: float
) -> FailureModel:
    """From its arrays. Raises `ValueError` where they do not fit together."""
    if not MIN_WINDOW <= window <= MAX_STATE // len(metrics):
        raise ValueError(
            f"a window of {window} readings is not from {MIN_WINDOW} to {MAX_STATE // len(metrics)}"
        )
    for array in (mean, scale, weights, np.array([intercept])):
        if not np.isfinite(array).all():
            raise ValueError("a weight or scale is not a possible number")
    if scale.min(initial=1.0) <= 0:
        raise ValueError("a scale is not above 0")
    return FailureModel(metrics, window, mean, scale, weights, intercept)


def _outliers(plain: _Outliers) -> OutlierModel:
    devices, metrics = len(plain.device_ids), len(plain.metrics)
    levels = _array(plain.levels).reshape(devices, metrics)
    units = _array(plain.units).reshape(devices, 2, metrics)
    return outlier_model(plain.metrics, plain.device_ids, levels, units, plain.settings)


def _array(data: bytes) -> Floats:
    return np.frombuffer(data, dtype=np.float64)
