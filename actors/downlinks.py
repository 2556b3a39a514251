"""By which protocol a device is told of commands, and where it is found there. Pure.

Devices that publish under topics of ours are found by their id. Of those behind another system, the way in
writes where they are into their metadata, under the name of the protocol; people may do so as well.
"""

from collections.abc import Mapping
from typing import Any, Final

BY_METADATA: Final = ("sparkplug", "chirpstack", "tts")
"""Protocols whose devices are found by their metadata; the first that is there counts."""


def downlink_of(of_profile: str, metadata: Mapping[str, Any]) -> str:
    """The protocol by which a device is told: what its metadata names, else what its profile says."""
    return next((name for name in BY_METADATA if type(metadata.get(name)) is dict), of_profile)


def route_of(downlink: str, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the device is found by that protocol; None where its id says it."""
    route = metadata.get(downlink) if downlink in BY_METADATA else None
    return route if type(route) is dict else None
