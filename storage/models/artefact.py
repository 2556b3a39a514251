"""A model as a file: skops' format, of an explicit list of types. Nothing is ever unpickled.

Needs the extra `models`. The checksum tells a file that was damaged, or changed by somebody who could not
change its metadata; the list of types is what holds against who could: an artefact is data for a few
classes, never code.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.failure import FailureModel
from sensorium.actors.models.fitting import need_scikit_learn
from sensorium.actors.models.outliers import OutlierModel, Settings
from sensorium.actors.models.plain import Model, check_metrics, failure_model, outlier_model

TYPES: Final = frozenset(
    {
        *("builtins.dict", "builtins.list", "builtins.str", "builtins.tuple"),
        *("numpy.float64", "numpy.int32", "numpy.int64", "numpy.bool", "numpy.ndarray"),
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
    }
)
"""What an artefact may consist of; skops itself would take all of scikit-learn, numpy and scipy."""
NODES: Final = frozenset(
    {"DictNode", "JsonNode", "ListNode", "NdArrayNode", "ObjectNode", "TupleNode", "TypeNode"}
)
"""Of skops: those that call functions or methods are not among them."""
MAX_BYTES: Final = 64 << 20
"""Of an artefact unpacked."""


class Tampered(InvalidMessage):
    """An artefact is not what was stored, or holds what no model of ours does."""


def dump(model: OutlierModel) -> bytes:
    """An outlier model as an artefact. Raises `InvalidMessage` without the extra."""
    content = {
        "kind": "outliers",
        "metrics": list(model.metrics),
        "device_ids": list(model.device_ids),
        "levels": model.levels,
        "units": model.units,
        "settings": list(model.settings),
    }
    return _dump(content)


def dump_failure(metrics: tuple[str, ...], window: int, pipeline: Any) -> bytes:
    """A fitted pipeline (`fitting.Fit`) as an artefact. Raises `InvalidMessage` without the extra."""
    return _dump({"kind": "failure", "metrics": list(metrics), "window": window, "pipeline": pipeline})


def load(data: bytes, checksum: str) -> Model:
    """The model in an artefact whose SHA-256 is `checksum`.

    Raises:
        Tampered: it is another file, or no model of ours.
        InvalidMessage: the extra is not installed.
    """
    if sha256(data).hexdigest() != checksum:
        raise Tampered("the model's file is not the one that was stored: its checksum differs")
    check_types(data)
    need_scikit_learn()
    import skops.io

    try:
        content = skops.io.loads(data, trusted=[])
        return _model(content)
    except InvalidMessage:
        raise
    except Exception as error:  # whatever is wrong in a file that only says that it is a model
        raise Tampered(f"the file cannot be read as a model: {type(error).__name__}: {error}") from error


def check_types(data: bytes) -> None:
    """Raises `Tampered` for what is not skops' format, too large, or of other types than `TYPES`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise Tampered(f"the model has {size:,} bytes, above {MAX_BYTES:,}")
            schema = json.loads(archive.read("schema.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, NotImplementedError) as error:
        raise Tampered(f"the file is no model: {error}") from error
    found = list(_named(schema))
    foreign = sorted({name for name, _ in found} - TYPES) + sorted({node for _, node in found} - NODES)
    if foreign or not found:
        raise Tampered(f"the file holds what no model does: {', '.join(foreign[:5]) or 'nothing'}")


def libraries() -> dict[str, str]:
    """The versions of what fits and stores, for the metadata."""
    found = {}
    for name in ("sensorium", "numpy", "scikit-learn", "skops"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _dump(content: dict[str, Any]) -> bytes:
    need_scikit_learn()
    import skops.io

    data: bytes = skops.io.dumps(content)
    check_types(data)
    return data


def _model(content: Any) -> Model:
    metrics = tuple(str(name) for name in content["metrics"])
    check_metrics(metrics)
    if content["kind"] == "outliers":
        quick, slow, *rest = content["settings"]
        settings = Settings(int(quick), int(slow), *(float(value) for value in rest))
        ids = tuple(str(device_id) for device_id in content["device_ids"])
        levels, units = (np.asarray(content[name], dtype=np.float64) for name in ("levels", "units"))
        return outlier_model(metrics, ids, levels, units, settings)
    return _failure(metrics, int(content["window"]), content["pipeline"])


def _failure(metrics: tuple[str, ...], window: int, pipeline: Any) -> FailureModel:
    (_, scaler), (_, regression) = pipeline.steps
    return failure_model(
        metrics,
        window,
        np.asarray(scaler.mean_, dtype=np.float64),
        np.asarray(scaler.scale_, dtype=np.float64),
        np.asarray(regression.coef_[0], dtype=np.float64),
        float(regression.intercept_[0]),
    )


def _named(node: Any) -> Iterator[tuple[str, str]]:
    """Type and kind of node of everything in a schema, however deep."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "__class__" in one or "__module__" in one or "__loader__" in one:
                yield f"{one.get('__module__')}.{one.get('__class__')}", str(one.get("__loader__"))
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
