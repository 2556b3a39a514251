"""The two segments: who goes first, against a model that is written differently."""

from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.recency import PROTECTED_SHARE, Recency

STEPS = st.lists(st.tuples(st.sampled_from(["use", "remove", "put_back"]), st.sampled_from("abcdefgh")))


@given(STEPS, st.integers(0, 8))
def test_it_orders_as_two_plain_lists_do(steps: list[tuple[str, str]], capacity: int) -> None:
    recency = Recency(capacity)
    probation: list[str] = []
    protected: list[str] = []
    for what, device_id in steps:
        known = device_id in probation + protected
        if what == "remove":
            recency.remove([device_id])
            probation = [i for i in probation if i != device_id]
            protected = [i for i in protected if i != device_id]
        elif what == "put_back" and not known:
            recency.put_back(device_id)
            probation.insert(0, device_id)
        elif not known:
            recency.admit(device_id)
            probation.append(device_id)
        elif what == "use":
            recency.use(device_id)
            promoted = device_id in probation
            (probation if promoted else protected).remove(device_id)
            protected.append(device_id)
            if promoted and len(protected) > PROTECTED_SHARE * max(capacity, len(probation + protected)):
                probation.append(protected.pop(0))
        assert list(recency.oldest()) == probation + protected
        assert len(recency) == len(probation) + len(protected)
