"""`/api/analytics/fleet` and `/api/analytics/savings`: how a whole fleet does, and what that is worth."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.rules import SEVERITIES
from sensorium.actors.trend import DAY_MS
from sensorium.serve import measure_examples as examples
from sensorium.serve.describe import answer
from sensorium.serve.measure_models import (
    ActivationReport,
    EnergySavings,
    FleetReport,
    MaintenanceSavings,
    ResponseTimes,
    SavingsReport,
)
from sensorium.serve.measures import day_range
from sensorium.serve.pages import json_response
from sensorium.serve.problems import invalid_parameter
from sensorium.serve.query import EndQuery, StartQuery
from sensorium.serve.services import Services
from sensorium.storage.fleet_figures import AlarmTimes, Energy

ENERGY: Final = (
    "expected = baseline_used / baseline_device_days * device_days; saved = expected - used;"
    " money = saved * price"
)
MAINTENANCE: Final = (
    "money = acted * hit_rate * (cost_unplanned - cost_planned);"
    " acted = critical and major alarms raised in the range that people acknowledged"
)
ACTED: Final = ("critical", "major")

TypeQuery = Annotated[
    str | None, Query(min_length=1, max_length=128, description="Only devices of this type.")
]
MoneyQuery = Annotated[float | None, Query(ge=0, le=1e12)]


class EnergyKind(StrEnum):
    """Whether the metric is a meter, which counts up, or a power."""

    METER = "meter"
    POWER = "power"


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["analytics"])

    @router.get(
        "/api/analytics/fleet",
        response_model=None,
        summary="How a fleet does",
        responses=answer(FleetReport, "Activation, and how alarms were answered.", examples.FLEET),
    )
    async def fleet(
        device_type: TypeQuery = None, start: StartQuery = None, end: EndQuery = None
    ) -> Response:
        """Of active devices, over whole hours: the last seven days by default, 92 at most. Alarms count that
        were raised in the range, the newest 100,000 of each database."""
        start_ms, end_ms = day_range(start, end, services.now_ms())
        try:
            found = await services.figures.activation(device_type, start_ms, end_ms)
        except InvalidMessage as error:
            raise invalid_parameter("start", str(error)) from None
        times = await services.figures.alarms(device_type, start_ms, end_ms)
        activation = ActivationReport(
            found.registered,
            found.activated,
            found.activated / found.registered if found.registered else None,
            found.recent,
            found.fresh,
            found.fresh_activated,
            _rank(sorted(found.waits_s), 0.5),
        )
        by_severity = {
            severity.value: response_times([time for time in times if time.severity == severity.value])
            for severity in SEVERITIES
            if any(time.severity == severity.value for time in times)
        }
        report = FleetReport(device_type, start_ms, end_ms, activation, response_times(times), by_severity)
        return json_response(report)

    @router.get(
        "/api/analytics/savings",
        response_model=None,
        summary="Energy and maintenance saved",
        responses=answer(SavingsReport, "Savings with their formulas.", examples.SAVINGS),
    )
    async def savings(
        device_type: TypeQuery = None,
        start: StartQuery = None,
        end: EndQuery = None,
        energy_metric: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
        energy_kind: EnergyKind = EnergyKind.METER,
        baseline_start: Annotated[str | None, Query(description="Of the energy to compare with.")] = None,
        baseline_end: Annotated[str | None, Query(description="By default, `start`.")] = None,
        price: Annotated[float | None, Query(ge=0, le=1e12, description="Of one unit of energy.")] = None,
        cost_unplanned: MoneyQuery = None,
        cost_planned: MoneyQuery = None,
        hit_rate: Annotated[
            float | None, Query(ge=0, le=1, description="The share of alarms that told of a real failure.")
        ] = None,
    ) -> Response:
        """Energy against a baseline of the same devices, by whole days in UTC; `energy_metric` and
        `baseline_start` ask for it. Maintenance by what `cost_unplanned`, `cost_planned` and `hit_rate` say.
        Nothing is assumed: what is not given is not reckoned."""
        start_ms, end_ms = day_range(start, end, services.now_ms(), 30, DAY_MS)
        energy = None
        if energy_metric is not None:
            if baseline_start is None:
                raise invalid_parameter("baseline_start", "goes with energy_metric")
            baseline = day_range(
                baseline_start, baseline_end or str(start_ms), services.now_ms(), width_ms=DAY_MS
            )
            up = energy_kind is EnergyKind.METER
            try:
                used = await services.figures.energy(energy_metric, up, device_type, start_ms, end_ms)
                before = await services.figures.energy(energy_metric, up, device_type, *baseline)
            except InvalidMessage as error:
                raise invalid_parameter("energy_metric", str(error)) from None
            energy = energy_savings(energy_metric, used, before, price)
        elif baseline_start is not None or baseline_end is not None or price is not None:
            raise invalid_parameter("energy_metric", "is needed for energy")
        maintenance = None
        costs = (cost_unplanned, cost_planned, hit_rate)
        if cost_unplanned is not None and cost_planned is not None and hit_rate is not None:
            times = await services.figures.alarms(device_type, start_ms, end_ms)
            acted = sum(time.acknowledged and time.severity in ACTED for time in times)
            money = acted * hit_rate * (cost_unplanned - cost_planned)
            maintenance = MaintenanceSavings(
                acted, hit_rate, cost_unplanned, cost_planned, money, MAINTENANCE
            )
        elif any(cost is not None for cost in costs):
            raise invalid_parameter("hit_rate", "goes with cost_unplanned and cost_planned: all or none")
        return json_response(SavingsReport(device_type, start_ms, end_ms, energy, maintenance))

    return router


def response_times(alarms: Sequence[AlarmTimes]) -> ResponseTimes:
    """How alarms were answered."""
    acks = sorted(alarm.to_ack_s for alarm in alarms if alarm.to_ack_s is not None)
    ends = [alarm.to_end_s for alarm in alarms if alarm.to_end_s is not None]
    return ResponseTimes(
        alarms=len(alarms),
        acknowledged=len(acks),
        mean_to_acknowledge_s=sum(acks) / len(acks) if acks else None,
        median_to_acknowledge_s=_rank(acks, 0.5),
        p90_to_acknowledge_s=_rank(acks, 0.9),
        ended=len(ends),
        mean_to_end_s=sum(ends) / len(ends) if ends else None,
    )


def energy_savings(metric: str, used: Energy, before: Energy, price: float | None) -> EnergySavings:
    """What was saved against the same number of days of devices before."""
    expected = before.energy / before.device_days * used.device_days if before.device_days else None
    saved = None if expected is None or not used.device_days else expected - used.energy
    return EnergySavings(
        metric,
        used.energy,
        used.device_days,
        before.energy,
        before.device_days,
        expected,
        saved,
        None if saved is None or price is None else saved * price,
        ENERGY,
    )


def _rank(ordered: Sequence[float], share: float) -> float | None:
    """The value of that rank, between two of them on the line."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
