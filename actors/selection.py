"""Which registrations a filter matches, for those who hold them in memory. In the database, SQL says it."""

from sensorium.actors.containment import contains
from sensorium.actors.ports import Filter
from sensorium.actors.records import Registration


def matches(which: Filter, registration: Registration) -> bool:
    """Whether everything that the filter gives holds for the device."""
    return (
        which.device_type in (None, registration.device_type)
        and which.status in (None, registration.status)
        and (which.device_ids is None or registration.device_id in which.device_ids)
        and contains(registration.metadata, which.metadata)
    )
