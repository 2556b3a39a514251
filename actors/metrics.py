"""Metric sets: the ordered names and kinds of what a device measures, shared by all devices alike.

A device's set only grows, so a position in it stays what it was; values travel and are stored by position.
"""

from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Final

from sensorium.actors.messages import Refusal, Value

NUMBER: Final = "n"
BOOL: Final = "b"
TEXT: Final = "t"

_KINDS: Final = {float: NUMBER, bool: BOOL, str: TEXT}
_WORDS: Final = {NUMBER: "a number", BOOL: "true or false", TEXT: "text"}


def kind_of(value: Value) -> str:
    """The kind (`NUMBER`, `BOOL` or `TEXT`) of a metric's value."""
    return _KINDS[type(value)]


class MetricSet:
    """An ordered set of metrics. Make them with `metric_set`, so that equal sets are one object.

    Attributes:
        names: the metrics' names, without repetition.
        kinds: one letter for each name.
        index: position by name.
    """

    def __init__(self, names: tuple[str, ...], kinds: str) -> None:
        self.names = names
        self.kinds = kinds
        self.index = {name: position for position, name in enumerate(names)}
        self.only_numbers = set(kinds) <= {NUMBER}

    @cached_property
    def id(self) -> int:
        """Signed 64-bit key of the set in the log: the first eight bytes of BLAKE2b over names and kinds."""
        text = "\0".join((*self.names, self.kinds))
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)

    def grown(self, names: tuple[str, ...], values: list[Value]) -> "MetricSet":
        """This set with those of `names` that it lacks appended, their kinds taken from `values`."""
        new = {n: kind_of(v) for n, v in zip(names, values, strict=True) if n not in self.index}
        if not new:
            return self
        return metric_set((*self.names, *new), self.kinds + "".join(new.values()))

    def __repr__(self) -> str:
        return f"<MetricSet {' '.join(f'{n}:{k}' for n, k in zip(self.names, self.kinds, strict=True))}>"

    def __reduce__(self) -> tuple[object, ...]:
        return metric_set, (self.names, self.kinds)


@lru_cache(maxsize=65_536)
def metric_set(names: tuple[str, ...], kinds: str) -> MetricSet:
    """The one set of these names and kinds (of the last 65,536 used)."""
    return MetricSet(names, kinds)


EMPTY: Final = metric_set((), "")


def arrange(
    metrics: MetricSet, names: tuple[str, ...], values: list[Value], limit: int
) -> tuple[MetricSet, list[Value | None]] | Refusal:
    """The values by position in `metrics`, grown by what is new; absent ones are None.

    Refused with `too_many_metrics` when it would grow beyond `limit`, `wrong_type` when a kind changed.
    """
    grown = metrics.grown(names, values)
    if grown is not metrics and len(grown.names) > limit:
        return Refusal("too_many_metrics", f"the device would have {len(grown.names)} metrics, above {limit}")
    index, kinds = grown.index, grown.kinds
    arranged: list[Value | None] = [None] * len(kinds)
    for name, value in zip(names, values, strict=True):
        position = index[name]
        if kind_of(value) != kinds[position]:
            was, now = _WORDS[kinds[position]], _WORDS[kind_of(value)]
            return Refusal("wrong_type", f"metric {name} has always been {was} and is now {now}")
        arranged[position] = value
    return grown, arranged
