"""Metric sets: shared, growing only at the end, with an id that is stored in the log."""

import pickle

import pytest

from sensorium.actors.messages import Refusal
from sensorium.actors.metrics import EMPTY, arrange, metric_set


def test_equal_sets_are_one_object_also_after_a_journey():
    ab = metric_set(("a", "b"), "nt")
    assert metric_set(("a", "b"), "nt") is ab
    assert pickle.loads(pickle.dumps(ab)) is ab
    assert metric_set(("a", "b"), "nn") is not ab


def test_ids_are_an_on_disk_format():
    assert EMPTY.id == -1970711489451281740
    assert metric_set(("temperature", "door"), "nb").id == -537568603233997269
    assert metric_set(("température",), "n").id == -3654928130271195322


def test_a_set_grows_at_its_end():
    a = EMPTY.grown(("a",), [1.0])
    abc = a.grown(("b", "a", "c"), [True, 9.0, "x"])
    assert (abc.names, abc.kinds) == (("a", "b", "c"), "nbt")
    assert abc.index == {"a": 0, "b": 1, "c": 2}
    assert abc.grown(("c",), ["y"]) is abc
    assert (a.only_numbers, abc.only_numbers, EMPTY.only_numbers) == (True, False, True)


def test_values_are_arranged_by_the_set():
    metrics = metric_set(("a", "b"), "nb")
    assert arrange(metrics, ("b",), [True], 9) == (metrics, [None, True])
    assert arrange(metrics, ("c", "a"), ["x", 1.0], 3) == (
        metric_set(("a", "b", "c"), "nbt"),
        [1.0, None, "x"],
    )


@pytest.mark.parametrize(
    ("names", "values", "code"),
    [
        (("c", "d"), [1.0, 1.0], "too_many_metrics"),
        (("a",), [True], "wrong_type"),
        (("c", "c"), [1.0, "x"], "wrong_type"),
    ],
)
def test_what_does_not_fit_is_refused(names, values, code):
    refusal = arrange(metric_set(("a", "b"), "nb"), names, values, 3)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code
