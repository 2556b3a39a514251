"""Tests of where a device is: inside or outside of a fence, or on its way through it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from sensorium.actors.conditions.kinds import Circle, Corner, Geofence
from sensorium.actors.conditions.registry import Memory, Test, compiles, position_of
from sensorium.actors.metrics import NUMBER, MetricSet
from sensorium.actors.windows import Window

EARTH_RADIUS_M: Final = 6_371_008.8
"""The mean radius (IUGG)."""

Inside = Callable[[float, float], bool]


@compiles(Geofence)
def _geofence(condition: Geofence, metrics: MetricSet, windows: Sequence[Window]) -> Test | None:
    north = position_of(condition.latitude, NUMBER, metrics)
    east = position_of(condition.longitude, NUMBER, metrics)
    if north is None or east is None:
        return None
    inside = circle(condition.circle) if condition.circle is not None else _polygon(condition.polygon or ())
    wanted = condition.when in ("inside", "enter")
    crossing = condition.when in ("enter", "leave")

    def test(values: Sequence[Any], time_ms: int, memory: Memory) -> bool | None:
        latitude, longitude = values[north], values[east]
        if latitude is None or longitude is None or not (abs(latitude) <= 90.0 and abs(longitude) <= 180.0):
            return None
        holds = inside(latitude, longitude) is wanted
        if not crossing:
            return holds
        before, beside = memory.latest[north], memory.latest[east]
        if type(before) is not float or type(beside) is not float:
            return False
        return holds and inside(before, beside) is not wanted

    return test


def circle(fence: Circle) -> Inside:
    """Whether a place (degrees) is in it, by great-circle distance (haversine formula)."""
    phi, centre = math.radians(fence.latitude), fence.longitude
    cos_phi = math.cos(phi)
    # Of half the angle that the radius spans, squared: the formula's own measure, so no inverse is needed.
    most = math.sin(min(fence.radius_m / (2 * EARTH_RADIUS_M), math.pi / 2)) ** 2

    def inside(latitude: float, longitude: float) -> bool:
        there = math.radians(latitude)
        rise = math.sin((there - phi) / 2)
        turn = math.sin(math.radians(longitude - centre) / 2)
        return rise * rise + cos_phi * math.cos(there) * turn * turn <= most

    return inside


def _polygon(corners: Sequence[Corner]) -> Inside:
    """Even-odd rule on the plane of degrees, which for fences of some kilometres is exact enough.

    Longitudes are taken relative to the first corner's, so a fence may cross the 180th meridian.
    """
    origin = corners[0][1]
    points = [(latitude, _turned(longitude - origin)) for latitude, longitude in corners]
    edges = list(zip(points, points[1:] + points[:1], strict=True))

    def inside(latitude: float, longitude: float) -> bool:
        x = _turned(longitude - origin)
        odd = False
        for (y1, x1), (y2, x2) in edges:
            if (y1 > latitude) is not (y2 > latitude) and x < (x2 - x1) * (latitude - y1) / (y2 - y1) + x1:
                odd = not odd
        return odd

    return inside


def _turned(degrees: float) -> float:
    """The same direction in [-180, 180)."""
    return (degrees + 180.0) % 360.0 - 180.0
