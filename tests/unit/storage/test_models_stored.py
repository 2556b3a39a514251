"""Artefacts and registries: what comes back is what was stored, and what was tampered with does not."""

import io
import json
import pickle
import zipfile
from hashlib import sha256

import msgspec
import numpy as np
import pytest

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models import plain
from sensorium.actors.models.failure import FailureModel
from sensorium.actors.models.features import feature_names
from sensorium.actors.models.info import ModelInfo, check_name
from sensorium.actors.models.outliers import OutlierModel, reference_of
from sensorium.storage.models.artefact import Tampered, check_types, dump, dump_failure, load
from sensorium.storage.models.folder import ARTEFACT, METADATA, FolderRegistry
from sensorium.storage.models.registry import ModelNotFound

INFO = ModelInfo("pumps", 0, "outliers", "pump", ("a", "b"), (), 3, 1, 2, 1, 400)


def outliers():
    rng = np.random.default_rng(1)
    references = {f"p{i}": reference_of(rng.normal(i, 1, (200, 2))) for i in range(3)}
    return OutlierModel(["a", "b"], references)


def failure():
    names = feature_names(["a"])
    ones = np.ones(len(names))
    return FailureModel(["a"], 16, ones * 2, ones * 3, np.linspace(-1, 1, len(names)), 0.5)


def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("_", "."), text)
    return out.getvalue()


@pytest.mark.parametrize("model", [outliers(), failure()], ids=["outliers", "failure"])
def test_plain_numbers_come_back(model):
    back = plain.decode(plain.encode(model))
    assert vars(back).keys() == vars(model).keys()
    at = [model.reference("p1")]
    states = model.begin(at), back.begin(at)
    for row in np.random.default_rng(2).normal(size=(40, len(model.metrics))):
        found = [m.step(s, row[None], at)[0] for m, s in zip((model, back), states, strict=True)]
        assert np.array_equal(*found, equal_nan=True)


def test_numbers_that_do_not_fit_together_are_refused():
    good = msgspec.msgpack.decode(plain.encode(outliers()))
    for change in (
        {"levels": good["levels"][:-8]},
        {"metrics": ["a", "a"]},
        {"metrics": []},
        {"device_ids": []},
        {"units": bytes(len(good["units"]))},
        {"levels": np.full(6, np.nan).tobytes()},
        {"settings": [0, 40, 0.6, 0.1, 5.0]},
        {"type": "other"},
    ):
        with pytest.raises(InvalidMessage, match="not the numbers of a model"):
            plain.decode(msgspec.msgpack.encode({**good, **change}))
    for data in (b"", b"\x00", pickle.dumps(INFO)):
        with pytest.raises(InvalidMessage):
            plain.decode(data)


@pytest.mark.slow
def test_artefacts_come_back():
    model = outliers()
    data = dump(model)
    back = load(data, sha256(data).hexdigest())
    assert plain.encode(back) == plain.encode(model)


@pytest.mark.slow
def test_a_fitted_pipeline_judges_as_scikit_learn_does():
    from sensorium.actors.models.features import window_features
    from sensorium.actors.models.fitting import fit_failure

    rng = np.random.default_rng(3)
    windows = rng.normal(size=(200, 16, 1)) * (1 + (np.arange(200) % 4 == 0))[:, None, None]
    labels = np.arange(200) % 4 == 0
    fit = fit_failure(window_features(windows), labels, np.arange(200) > 150)
    data = dump_failure(("a",), 16, fit.pipeline)
    model = load(data, sha256(data).hexdigest())
    states = model.begin([0] * 200)
    for i in range(16):
        scores = model.step(states, windows[:, i], [0] * 200)
    assert scores == pytest.approx(fit.pipeline.predict_proba(window_features(windows))[:, 1])


@pytest.mark.slow
def test_another_file_or_another_type_is_refused():
    data = dump(outliers())
    checksum = sha256(data).hexdigest()
    with pytest.raises(Tampered, match="checksum"):
        load(data[:-1] + b"!", checksum)
    import skops.io
    from sklearn.svm import SVC

    other = skops.io.dumps({"kind": "outliers", "model": SVC()})
    with pytest.raises(Tampered, match=r"sklearn\.svm"):
        load(other, sha256(other).hexdigest())
    wrong = skops.io.dumps({"kind": "outliers", "metrics": ["a"]})
    with pytest.raises(Tampered, match="cannot be read as a model"):
        load(wrong, sha256(wrong).hexdigest())


def node(module, name, loader="ObjectNode", **more):
    return {"__class__": name, "__module__": module, "__loader__": loader, **more}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (node("os", "system", "FunctionNode"), "os.system, FunctionNode"),
        (node("builtins", "dict", "DictNode", content={"x": node("builtins", "eval", "TypeNode")}), "eval"),
        (node("builtins", "dict", "MethodNode"), "MethodNode"),
        (node("builtins", "dict", "DictNode", content=[[node("operator", "attrgetter")]]), "attrgetter"),
        ({"__class__": "dict"}, "None.dict"),
        ({}, "nothing"),
    ],
)
def test_types_that_no_model_has_are_refused_before_anything_is_made_of_them(schema, named):
    with pytest.raises(Tampered, match=named):
        check_types(zipped(schema_json=json.dumps(schema)))


def test_what_is_no_file_of_skops_is_refused():
    for data in (b"", pickle.dumps({"a": 1}), zipped(other="x"), zipped(schema_json="{"), b"PK\x03\x04"):
        with pytest.raises(Tampered):
            check_types(data)


@pytest.fixture
def folder(tmp_path):
    return FolderRegistry(tmp_path / "models")


def test_versions_are_counted_and_come_back(folder, tmp_path):
    assert folder.all() == []
    first = folder.add(INFO, b"one")
    second = folder.add(INFO, b"two")
    other = folder.add(msgspec.structs.replace(INFO, name="fans"), b"x")
    assert (first.version, second.version, second.size_bytes) == (1, 2, 3)
    assert second.sha256 == sha256(b"two").hexdigest()
    assert folder.all() == [other, second, first]
    assert folder.get("pumps") == second
    assert folder.artefact(folder.get("pumps", 1)) == b"one"
    assert FolderRegistry(tmp_path / "models").all() == folder.all()
    assert not list((tmp_path / "models" / "pumps").glob(".new-*"))


def test_a_deleted_number_is_not_given_again(folder):
    folder.add(INFO, b"one")
    folder.add(INFO, b"two")
    folder.delete("pumps", 2)
    assert folder.get("pumps").version == 1
    assert folder.add(INFO, b"three").version == 3
    with pytest.raises(ModelNotFound, match="no version 2 of the model pumps; the newest is 3"):
        folder.get("pumps", 2)
    with pytest.raises(ModelNotFound, match="no model fans"):
        folder.delete("fans", 1)


def test_metadata_of_another_version_is_noticed(folder, tmp_path):
    folder.add(INFO, b"one")
    folder.add(INFO, b"two")
    place = tmp_path / "models" / "pumps"
    (place / "1" / METADATA).write_bytes((place / "2" / METADATA).read_bytes())
    with pytest.raises(InvalidMessage, match="is of pumps@2"):
        folder.all()
    (place / "1" / METADATA).write_text("{}")
    with pytest.raises(InvalidMessage, match=METADATA):
        folder.get("pumps", 1)
    (place / "2" / ARTEFACT).unlink()
    with pytest.raises(ModelNotFound, match="no such file"):
        folder.artefact(folder.get("pumps", 2))


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "a b", "a\0"])
def test_names_that_are_no_folder_are_refused(folder, name):
    with pytest.raises(InvalidMessage, match="no name of a model"):
        check_name(name)
    with pytest.raises(InvalidMessage):
        folder.get(name)
