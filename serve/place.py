"""Which devices are meant: by type, status, metadata, and where they stand."""

from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Annotated, Any, Final

from fastapi import Query, Request

from sensorium.actors.conditions.kinds import Circle
from sensorium.actors.conditions.places import circle
from sensorium.actors.peer_watch import CELL_DEGREES
from sensorium.actors.ports import Filter
from sensorium.actors.records import Registration
from sensorium.serve.devices import METADATA_PREFIX, metadata_filter
from sensorium.serve.problems import invalid_parameter
from sensorium.serve.services import ReadsDevices

PAGE: Final = 1_000
MAX_DEVICES: Final = 100_000
MAX_GROUPS: Final = 100

NearQuery = Annotated[
    str | None,
    Query(
        max_length=64, description="LATITUDE,LONGITUDE,METRES: devices that are registered in this circle."
    ),
]
GroupQuery = Annotated[
    str | None,
    Query(max_length=140, description="`type`, `metadata.KEY` or `place`: one series for each value of it."),
]


def near_circle(text: str | None) -> Circle | None:
    """A circle from `latitude,longitude,metres`."""
    if text is None:
        return None
    try:
        latitude, longitude, radius_m = (float(part) for part in text.split(","))
    except ValueError:
        raise invalid_parameter("near", "LATITUDE,LONGITUDE,METRES, such as 52.52,13.4,500") from None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180 and 0 < radius_m <= 20_100_000):
        raise invalid_parameter("near", "latitude up to 90, longitude up to 180, metres from 0 to 20,100,000")
    return Circle(latitude, longitude, radius_m)


async def chosen(
    registry: ReadsDevices, request: Request, device_type: str | None, near: str | None
) -> list[Registration]:
    """The registrations, of whatever status, of a type, with this metadata, in this circle.

    Raises:
        Problem: they are more than `MAX_DEVICES`, or a parameter cannot be read.
    """
    which = Filter(device_type, None, metadata_filter(request, None))
    fence = near_circle(near)
    inside = None if fence is None else circle(fence)
    found: list[Registration] = []
    after: str | None = None
    while True:
        page = await registry.page(which, after, PAGE)
        found += (r for r in page.items if inside is None or _stands(r, inside))
        if len(found) > MAX_DEVICES:
            raise invalid_parameter("type", f"more than {MAX_DEVICES:,} devices: choose fewer")
        if (after := page.next) is None:
            return found


def grouped(devices: Sequence[Registration], by: str) -> dict[str, list[str]]:
    """The devices' ids by what they have in common, as text; those without it are under "".

    Raises:
        Problem: `by` is none of `type`, `place` and `metadata.KEY`, or there are more than `MAX_GROUPS`.
    """
    if by not in ("type", "place") and not (by.startswith(METADATA_PREFIX) and all(by.split("."))):
        raise invalid_parameter("group_by", "type, place or metadata.KEY")
    groups: dict[str, list[str]] = {}
    for device in devices:
        if by == "place":
            value = cell_of(device)
        else:
            value = device.device_type if by == "type" else _within(device.metadata, by.split(".")[1:])
        groups.setdefault(value, []).append(device.device_id)
        if len(groups) > MAX_GROUPS:
            raise invalid_parameter("group_by", f"more than {MAX_GROUPS} groups")
    return dict(sorted(groups.items()))


def cell_of(device: Registration) -> str:
    """The cell of `CELL_DEGREES` on the map that the device is in, by its corner in the south west, such as
    "52.5,13.4"; "" for one without a place."""
    where = device.location
    if where is None or where.latitude is None or where.longitude is None:
        return ""
    # A little more, because 52.6 / 0.1 is less than 526 in binary.
    latitude, longitude = (floor(part / CELL_DEGREES + 1e-9) for part in (where.latitude, where.longitude))
    return f"{latitude * CELL_DEGREES:.1f},{longitude * CELL_DEGREES:.1f}"


def _stands(device: Registration, inside: Callable[[float, float], bool]) -> bool:
    where = device.location
    if where is None or where.latitude is None or where.longitude is None:
        return False
    return inside(where.latitude, where.longitude)


def _within(metadata: Mapping[str, Any], steps: Sequence[str]) -> str:
    value: Any = metadata
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        value
        if isinstance(value, str)
        else ""
        if value is None or isinstance(value, (dict, list))
        else f"{value:g}"
    )
