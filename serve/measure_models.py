"""What the pages of measures answer with."""

import msgspec

from sensorium.actors.data_quality import Arrivals, DataQuality
from sensorium.actors.trend import DaysLeft, Line
from sensorium.actors.uptime import Uptime


class QualityReport(msgspec.Struct, frozen=True):
    """The quality of a device's data over whole hours; `formula` says how the score came about."""

    device_id: str
    start_ms: int
    end_ms: int
    quality: DataQuality
    arrivals: Arrivals
    formula: str


class UptimeReport(msgspec.Struct, frozen=True):
    """How long a device was there."""

    device_id: str
    start_ms: int
    end_ms: int
    uptime: Uptime


class MetricTrend(msgspec.Struct, frozen=True):
    """Where a metric is going; `line` is null for fewer than five points, `days_left` where no limit is met.

    `since_ms` is the first point that counts: of a battery that was charged, the first after that.
    """

    metric: str
    line: Line | None
    since_ms: int | None
    limit: float | None
    days_left: DaysLeft | None


class TrendReport(msgspec.Struct, frozen=True):
    """Trends of a device's battery, signal, or what was asked for."""

    device_id: str
    start_ms: int
    end_ms: int
    interval_s: int
    metrics: list[MetricTrend]


class ActivationReport(msgspec.Struct, frozen=True):
    """Active devices: how many have ever sent (`rate` of them), have sent in the range, were new in it."""

    registered: int
    activated: int
    rate: float | None
    sent_in_range: int
    registered_in_range: int
    activated_of_those: int
    median_wait_s: float | None


class ResponseTimes(msgspec.Struct, frozen=True):
    """Alarms raised in the range, and how they were answered; means, medians and 90th percentiles."""

    alarms: int
    acknowledged: int
    mean_to_acknowledge_s: float | None
    median_to_acknowledge_s: float | None
    p90_to_acknowledge_s: float | None
    ended: int
    mean_to_end_s: float | None


class FleetReport(msgspec.Struct, frozen=True):
    """Measures of a fleet over a range; `by_severity` only of severities that were raised."""

    device_type: str | None
    start_ms: int
    end_ms: int
    activation: ActivationReport
    alarms: ResponseTimes
    by_severity: dict[str, ResponseTimes]


class EnergySavings(msgspec.Struct, frozen=True):
    """Energy that was not used, in the metric's unit, and what that is worth; `formula` names the fields."""

    metric: str
    used: float
    device_days: int
    baseline_used: float
    baseline_device_days: int
    expected: float | None
    saved: float | None
    money: float | None
    formula: str


class MaintenanceSavings(msgspec.Struct, frozen=True):
    """What acting on alarms was worth, by the costs that were given; `formula` names the fields."""

    acted: int
    hit_rate: float
    cost_unplanned: float
    cost_planned: float
    money: float
    formula: str


class SavingsReport(msgspec.Struct, frozen=True):
    """Savings over a range; null where nothing was given to reckon by."""

    device_type: str | None
    start_ms: int
    end_ms: int
    energy: EnergySavings | None
    maintenance: MaintenanceSavings | None


VALUES: tuple[type, ...] = (QualityReport, UptimeReport, TrendReport, FleetReport, SavingsReport)
