"""Device profiles: what a device type keeps in memory, and the bounds that its readings must respect."""

from collections.abc import Mapping
from typing import Final

import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.schema import Schema

DETECTOR_NAMES: Final = ("ensemble", "zscore", "robust", "level_shift", "seasonal", "spectral", "flatline")

MAX_WATCHED: Final = 64
"""Metrics of a device that one entry without names watches, and pairs of metric and detector that rules ask
for at one device."""


class WindowSpec(msgspec.Struct, frozen=True):
    """A rolling window of `length_s` seconds that moves on by panes of `slide_s` seconds.

    The length must be a whole multiple of the slide, of at most 1,440 panes; the slide, whole milliseconds.
    """

    length_s: float = 900.0
    slide_s: float = 60.0

    def __post_init__(self) -> None:
        panes = self.length_s / self.slide_s if self.slide_s > 0 else 0.0
        if not 1 <= panes <= 1440 or abs(panes - round(panes)) > 1e-9 or not _whole_ms(self.slide_s):
            raise InvalidMessage(
                f"window of {self.length_s} s by {self.slide_s} s: the length must be 1 to 1440 whole slides "
                "and the slide whole milliseconds"
            )

    @property
    def panes(self) -> int:
        """How many panes make the window."""
        return round(self.length_s / self.slide_s)

    @property
    def slide_ms(self) -> int:
        """A pane's length in milliseconds."""
        return round(self.slide_s * 1000)


class DetectorSpec(msgspec.Struct, frozen=True):
    """A detector that watches metrics of every device of a type, each on its own.

    Attributes:
        detector: its name, one of `DETECTOR_NAMES`.
        metrics: those that it watches; none: all numbers, the first `MAX_WATCHED` that the device sent.
        threshold: the score from which a reading is an anomaly.
        limit: what scores 0.5, in the detector's own unit; None: its default. The ensemble has none.
        period: of the seasonal one, "day" or "week".
    """

    detector: str = "ensemble"
    metrics: tuple[str, ...] = ()
    threshold: float = 0.5
    limit: float | None = None
    period: str = "day"

    def __post_init__(self) -> None:
        if self.detector not in DETECTOR_NAMES:
            raise InvalidMessage(f"detector {self.detector!r} is none of {', '.join(DETECTOR_NAMES)}")
        if self.limit is not None and (self.detector == "ensemble" or not 0 < self.limit < 1e6):
            raise InvalidMessage(
                "limit: the ensemble has none"
                if self.detector == "ensemble"
                else f"limit: {self.limit} is not between 0 and 1,000,000"
            )
        if not 0.05 <= self.threshold <= 1:
            raise InvalidMessage(f"threshold: {self.threshold} is not between 0.05 and 1")
        if self.period not in ("day", "week") or (self.period == "week" and self.detector != "seasonal"):
            raise InvalidMessage('period: "day", or for the seasonal detector "week"')


def _whole_ms(duration_s: float) -> bool:
    duration_ms = duration_s * 1000
    return duration_ms >= 1 and abs(duration_ms - round(duration_ms)) < 1e-6


class RateLimit(msgspec.Struct, frozen=True):
    """Messages that a device may send: `rate_per_s` in the long run, `burst` at once."""

    rate_per_s: float
    burst: int = 10


LIMITED: Final = frozenset({"mqtt", "coap", "http", "sparkplug"})
"""Protocols that `Rates.every` is about. The radio limits LoRaWAN; who reads a Kafka topic sets the pace."""


class Rates(msgspec.Struct, frozen=True):
    """How much each device may send.

    Attributes:
        every: by each of the protocols in `LIMITED`; None: any number.
        by_protocol: by these, whatever `every` says.
    """

    every: RateLimit | None = None
    by_protocol: dict[str, RateLimit] = {}

    def of(self, protocol: str) -> RateLimit | None:
        """By one protocol; None: any number."""
        return self.by_protocol.get(protocol, self.every if protocol in LIMITED else None)

    def over(self, base: "Rates") -> "Rates":
        """`base` with what this one says; `every` goes for all protocols that `base` limits."""
        of_base = {name: self.every or limit for name, limit in base.by_protocol.items()}
        return Rates(self.every or base.every, of_base | self.by_protocol)


SHARED: Final = "shared"
PROCESS: Final = "process"


class ProcessNeeds(msgspec.Struct, frozen=True):
    """What the process of an isolated device claims of Ray, and which nodes it may be on.

    Attributes:
        num_cpus, num_gpus: slots; 0 claims none.
        memory_bytes: of Ray's accounting; 0 claims none.
        resources: custom resources by name.
        labels: Ray's label selector: labels that the node must have, by name.
    """

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    memory_bytes: int = 0
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}

    def __bool__(self) -> bool:
        return self != ProcessNeeds()


class Profile(msgspec.Struct, frozen=True):
    """What holds for all devices of a type.

    Attributes:
        windows: the rolling windows kept of each number; the first is the default one.
        lateness_s: a reading this much older than the device's newest is still in order for windows.
        max_metrics: distinct metric names a device may ever send.
        offline_after_s: silence after which the device counts as offline.
        downlink: how the device is told of commands: "mqtt" is published to, "coap" asks. Where its metadata
            says that it is behind another system, that counts.
        schema: what its readings must look like; None: anything goes.
        detectors: what watches for anomalies, besides what rules ask for.
        rates: how much it may send. The ways in hold it to that, before a host hears of it.
        isolation: "process" gives each device a process of its own, "shared" hosts many in one.
        isolation_resources: what such a process needs.
        retention_class: the number by which the database knows how long what its devices write is kept.
    """

    windows: tuple[WindowSpec, ...] = (WindowSpec(),)
    lateness_s: float = 300.0
    max_metrics: int = 256
    offline_after_s: float = 600.0
    downlink: str = "mqtt"
    schema: Schema | None = None
    detectors: tuple[DetectorSpec, ...] = ()
    rates: Rates = Rates()
    isolation: str = SHARED
    isolation_resources: ProcessNeeds = ProcessNeeds()
    retention_class: int = 0


class Profiles(msgspec.Struct, frozen=True):
    """The profile of each device type, and the one of all others."""

    default: Profile = Profile()
    by_type: dict[str, Profile] = {}

    def of(self, device_type: str) -> Profile:
        """The profile of a device type."""
        return self.by_type.get(device_type, self.default)

    def kept_as(self, classes: Mapping[str, int]) -> "Profiles":
        """The same with the retention class of each type that has one of its own."""
        kept = {
            name: msgspec.structs.replace(self.of(name), retention_class=number)
            for name, number in classes.items()
        }
        return Profiles(self.default, self.by_type | kept)

    def limits(self, protocol: str) -> "RateLimits | None":
        """What a way in holds its devices to; None: nobody is limited."""
        default = self.default.rates.of(protocol)
        by_type = {name: profile.rates.of(protocol) for name, profile in self.by_type.items()}
        differing = {name: limit for name, limit in by_type.items() if limit != default}
        return RateLimits(default, differing) if default is not None or differing else None


class RateLimits(msgspec.Struct, frozen=True):
    """By one protocol: the limit of each device type that has one of its own, and of all others."""

    default: RateLimit | None
    by_type: dict[str, RateLimit | None] = {}
