"""What a bucket of readings comes to: figures and a sketch, folded and merged. No database here."""

from array import array
from collections.abc import Collection, Iterator, Set
from math import isfinite, nan
from typing import Final, NamedTuple, Self

from sensorium.actors import sketch
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.metrics import TEXT, MetricSet
from sensorium.storage._fold_py import Folded, fold_texts

try:
    from sensorium.storage._fold import fold
except ImportError:
    from sensorium.storage._fold_py import fold

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
    """The figures of a bucket, as `_fold_py` has them, to be merged with later ones.

    Of equally old first values the earlier one in the log counts.
    """

    __slots__ = (
        *("start_ms", "first_ms", "last_ms", "total", "squares", "least", "most", "first", "last", "n"),
        *("bins", "first_text", "last_text"),
    )

    start_ms: int
    first_ms: int
    last_ms: int
    total: float | None
    squares: float | None
    least: float | None
    most: float | None
    first: float | None
    last: float | None
    n: int
    bins: sketch.Bins
    first_text: str | None
    last_text: str | None

    @classmethod
    def of(cls, folded: Folded) -> Self:
        """From what `folded` gives."""
        made = cls()
        (made.start_ms, made.first_ms, made.last_ms, made.total, made.squares, *rest) = folded
        made.least, made.most, made.first, made.last, made.n, packed, made.first_text, made.last_text = rest
        made.bins = sketch.decode(packed or b"")
        return made

    @property
    def folded(self) -> Folded:
        """All of it."""
        return (
            *(self.start_ms, self.first_ms, self.last_ms, self.total, self.squares, self.least, self.most),
            *(
                self.first,
                self.last,
                self.n,
                sketch.encode(self.bins) or None,
                self.first_text,
                self.last_text,
            ),
        )

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


def merged(earlier: Folded, later: Folded) -> Folded:
    """Of two stretches of the log, the same bucket's figures of both."""
    made = Rollup.of(earlier)
    made.merge(Rollup.of(later))
    return made.folded


class Series:
    """A device's readings of one metric set, in the order of the log: times, and numbers row after row.

    A number that is absent is NaN.
    """

    __slots__ = ("device", "metrics", "minute", "numbers", "texts", "times_ms")

    def __init__(self, device: int, metrics: MetricSet) -> None:
        self.device = device
        self.metrics = metrics
        self.minute = -1
        """That of the last one."""
        self.times_ms = array("q")
        self.numbers = array("d")
        self.texts: list[list[str | None] | None] = []

    def folded(self, bucket_ms: int) -> Iterator[tuple[str, str, list[Folded]]]:
        """Each metric's name, kind and buckets."""
        metrics = self.metrics
        width = len(metrics.kinds) - metrics.kinds.count(TEXT)
        number_slot = text_slot = 0
        for name, kind in zip(metrics.names, metrics.kinds, strict=True):
            if kind == TEXT:
                texts = [None if row is None else row[text_slot] for row in self.texts]
                yield name, kind, fold_texts(self.times_ms, texts, bucket_ms)
                text_slot += 1
            else:
                yield name, kind, fold(self.times_ms, self.numbers, number_slot, width, bucket_ms)
                number_slot += 1


class Collected:
    """Readings by device and metric set, in the order of the log, until they are folded. Bounded: `full`."""

    def __init__(self) -> None:
        self._series: dict[tuple[int, int], Series] = {}
        self._values = self._rollups = 0

    @property
    def full(self) -> bool:
        """Whether no more should be added."""
        return self._rollups >= MAX_ROLLUPS or self._values >= MAX_VALUES

    @property
    def series(self) -> Collection[Series]:
        """All of them; of one device there may be several, later ones begin later."""
        return self._series.values()

    def add(
        self,
        device: int,
        time_ms: int,
        metrics: MetricSet,
        numbers: list[float | None] | None,
        texts: list[str | None] | None,
    ) -> None:
        """Add a reading that `check` let pass."""
        key = (device, metrics.id)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(device, metrics)
        minute = time_ms // MINUTE_MS
        if minute != series.minute:
            series.minute = minute
            self._rollups += len(metrics.kinds)
        series.times_ms.append(time_ms)
        if numbers:
            series.numbers.extend([nan if v is None else v for v in numbers] if None in numbers else numbers)  # type: ignore[arg-type]
            self._values += len(numbers)
        if not metrics.only_numbers and TEXT in metrics.kinds:
            series.texts.append(texts)
            self._values += len(texts or ())

    def forget(self, devices: Set[int]) -> None:
        """Drop what was added of these devices. What is `full` by them stays full until the next flush."""
        for key in [key for key in self._series if key[0] in devices]:
            del self._series[key]


def check(metrics: MetricSet, numbers: list[float | None] | None, texts: list[str | None] | None) -> None:
    """Raise `InvalidMessage` for a reading that cannot be folded."""
    texts_wanted = 0 if metrics.only_numbers else metrics.kinds.count(TEXT)
    if len(numbers or ()) != len(metrics.kinds) - texts_wanted or len(texts or ()) != texts_wanted:
        raise InvalidMessage(f"its values do not fit {metrics!r}")
    for value in numbers or ():
        if value is not None and not isfinite(value):
            raise InvalidMessage(f"{value} is no number to add up")
