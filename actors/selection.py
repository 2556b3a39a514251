"""Which registrations a filter matches, for those who hold them in memory. In the database, SQL says it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sensorium.actors.ports import Filter
from sensorium.actors.records import Registration


def matches(which: Filter, registration: Registration) -> bool:
    """Whether everything that the filter gives holds for the device."""
    return (
        which.device_type in (None, registration.device_type)
        and which.status in (None, registration.status)
        and (which.device_ids is None or registration.device_id in which.device_ids)
        and _contains(registration.metadata, which.metadata)
    )


def _contains(whole: Any, part: Any) -> bool:
    """PostgreSQL's jsonb containment: objects by key, arrays as sets, the rest by equality."""
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            key in whole and _contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, (list, tuple)):
        return isinstance(whole, (list, tuple)) and all(any(_contains(w, p) for w in whole) for p in part)
    return bool(msgspec.json.encode(whole) == msgspec.json.encode(part) or _same_number(whole, part))


def _same_number(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return numbers and not isinstance(a, bool) and not isinstance(b, bool) and a == b
