"""What a bucket of readings comes to: figures and a sketch, folded and merged. No database here."""

from array import array
from collections.abc import Iterator, Sequence, Set
from math import isfinite, nan
from typing import Final, NamedTuple

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import TEXT, MetricSet

MINUTE_MS: Final = 60_000
MAX_ROLLUPS: Final = 200_000
MAX_VALUES: Final = 4_000_000
"""What is kept between two flushes: minutes of a device and metric, and values of eight bytes."""


class Level(NamedTuple):
    """A width of buckets, which are aligned to 1970 UTC, and of the partitions that hold them."""

    name: str
    width_ms: int
    partition_days: int

    @property
    def table(self) -> str:
        """The table's name."""
        return f"rollups_{self.name}"


LEVELS: Final = (
    Level("1m", MINUTE_MS, 7),
    Level("1h", 3_600_000, 91),
    Level("1d", 86_400_000, 1_456),
)


class Rollup:
    """The figures of one metric's values. Of equally old first values the earlier one in the log counts.

    Of numbers and bools (as 0 and 1): `n`, `total`, `squares`, `least`, `most`, `first`, `last`, `bins`. Of
    texts: `n`, `first_text`, `last_text`. Of both: `first_ms` and `last_ms`, event times.
    """

    __slots__ = (
        *("n", "total", "squares", "least", "most", "first", "last", "first_ms", "last_ms", "bins"),
        *("first_text", "last_text"),
    )

    n: int
    total: float | None
    squares: float | None
    least: float | None
    most: float | None
    first: float | None
    last: float | None
    first_ms: int
    last_ms: int
    bins: sketch.Bins
    first_text: str | None
    last_text: str | None

    @classmethod
    def of_numbers(cls, times_ms: Sequence[int], values: Sequence[float]) -> "Rollup":
        """Of at least one value, in the order of the log."""
        made = cls()
        made.first_text = made.last_text = None
        made.n = len(values)
        if made.n == 1:
            # Where a device sends less than once a minute.
            value = values[0]
            made.total = made.least = made.most = made.first = made.last = value
            made.squares = value * value
            made.first_ms = made.last_ms = times_ms[0]
            made.bins = {sketch.bin_of(value): 1}
            return made
        made.total = sum(values)
        made.squares = sum([value * value for value in values])
        made.least, made.most = min(values), max(values)
        made._ends(times_ms)
        made.first = values[times_ms.index(made.first_ms)]
        made.last = values[_last_index(times_ms, made.last_ms)]
        made.bins = sketch.bins_of(values)
        return made

    @classmethod
    def of_texts(cls, times_ms: Sequence[int], texts: Sequence[str]) -> "Rollup":
        """Of at least one text, in the order of the log."""
        made = cls()
        made.n = len(texts)
        made.total = made.squares = made.least = made.most = made.first = made.last = None
        made._ends(times_ms)
        made.first_text = texts[times_ms.index(made.first_ms)]
        made.last_text = texts[_last_index(times_ms, made.last_ms)]
        made.bins = {}
        return made

    def _ends(self, times_ms: Sequence[int]) -> None:
        self.first_ms, self.last_ms = min(times_ms), max(times_ms)

    def copy(self) -> "Rollup":
        """One that merging does not share with this one."""
        made = Rollup()
        made.n, made.total, made.squares = self.n, self.total, self.squares
        made.least, made.most, made.first, made.last = self.least, self.most, self.first, self.last
        made.first_ms, made.last_ms = self.first_ms, self.last_ms
        made.first_text, made.last_text = self.first_text, self.last_text
        made.bins = self.bins.copy()
        return made

    def merge(self, later: "Rollup") -> None:
        """Add what stands later in the log, whatever its event times."""
        if self.total is not None and later.total is not None:
            assert self.squares is not None
            assert later.squares is not None
            assert self.least is not None
            assert later.least is not None
            assert self.most is not None
            assert later.most is not None
            self.total += later.total
            self.squares += later.squares
            self.least = min(self.least, later.least)
            self.most = max(self.most, later.most)
            sketch.merge(self.bins, later.bins)
        self.n += later.n
        if later.first_ms < self.first_ms:
            self.first_ms, self.first, self.first_text = later.first_ms, later.first, later.first_text
        if later.last_ms >= self.last_ms:
            self.last_ms, self.last, self.last_text = later.last_ms, later.last, later.last_text


def _last_index(times_ms: Sequence[int], last_ms: int) -> int:
    """Where the last of these times stands last."""
    index = len(times_ms) - 1
    while times_ms[index] != last_ms:
        index -= 1
    return index


Key = tuple[int, str, str, int]
"""Device, metric, kind and the start of the bucket."""


class _Group:
    """A device's readings of one metric set in one minute: times, and numbers row after row (NaN: absent)."""

    __slots__ = ("numbers", "texts", "times_ms")

    def __init__(self) -> None:
        self.times_ms = array("q")
        self.numbers = array("d")
        self.texts: list[list[str | None] | None] = []


class Collected:
    """Readings by device and minute, in the order of the log, until they are reduced. Bounded, see `full`."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int, int], _Group] = {}
        self._sets: dict[int, MetricSet] = {}
        self._values = self._rollups = 0

    @property
    def full(self) -> bool:
        """Whether no more should be added."""
        return self._rollups >= MAX_ROLLUPS or self._values >= MAX_VALUES

    def add(
        self,
        device: int,
        time_ms: int,
        metrics: MetricSet,
        numbers: list[float | None] | None,
        texts: list[str | None] | None,
    ) -> None:
        """Add a reading that `check` let pass."""
        key = (device, metrics.id, time_ms // MINUTE_MS)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
            self._sets[metrics.id] = metrics
            self._rollups += len(metrics.kinds)
        group.times_ms.append(time_ms)
        if numbers:
            group.numbers.extend([nan if v is None else v for v in numbers] if None in numbers else numbers)  # type: ignore[arg-type]
            self._values += len(numbers)
        if not metrics.only_numbers and TEXT in metrics.kinds:
            group.texts.append(texts)
            self._values += len(texts or ())

    def forget(self, devices: Set[int]) -> None:
        """Drop what was added of these devices. What is `full` by them stays full until the next flush."""
        for key in [key for key in self._groups if key[0] in devices]:
            del self._groups[key]

    def minutes(self) -> Iterator[tuple[Key, Rollup]]:
        """The rollup of each metric and minute; of one key there may be several, later ones later."""
        for (device, set_id, minute), group in self._groups.items():
            metrics = self._sets[set_id]
            bucket_ms = minute * MINUTE_MS
            times_ms = group.times_ms.tolist()
            width = sum(kind != TEXT for kind in metrics.kinds)
            number_slot = text_slot = 0
            for name, kind in zip(metrics.names, metrics.kinds, strict=True):
                key = (device, name, kind, bucket_ms)
                if kind == TEXT:
                    said = [
                        (t, row[text_slot])
                        for t, row in zip(times_ms, group.texts, strict=True)
                        if row is not None
                    ]
                    told = [(t, text) for t, text in said if text is not None]
                    if told:
                        yield key, Rollup.of_texts([t for t, _ in told], [text for _, text in told])
                    text_slot += 1
                    continue
                column = group.numbers[number_slot::width].tolist()
                number_slot += 1
                times = times_ms
                if any(v != v for v in column):
                    there = [(t, v) for t, v in zip(times_ms, column, strict=True) if v == v]
                    times, column = [t for t, _ in there], [v for _, v in there]
                if column:
                    yield key, Rollup.of_numbers(times, column)


def check(metrics: MetricSet, numbers: list[float | None] | None, texts: list[str | None] | None) -> None:
    """Raise `InvalidMessage` for a reading that cannot be folded."""
    texts_wanted = metrics.kinds.count(TEXT)
    if len(numbers or ()) != len(metrics.kinds) - texts_wanted or len(texts or ()) != texts_wanted:
        raise InvalidMessage(f"its values do not fit {metrics!r}")
    for value in numbers or ():
        if value is not None and not isfinite(value):
            raise InvalidMessage(f"{value} is no number to add up")
