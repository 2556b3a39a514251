"""`/api/profiles`: what holds for the devices of each type, as it stands in the configuration."""

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Path, Response

from sensorium.actors.profile import DetectorSpec, Profile, Rates, WindowSpec
from sensorium.actors.schema import MetricSpec, Outside
from sensorium.serve.describe import answer
from sensorium.serve.pages import json_response
from sensorium.serve.services import Services

DEFAULT: Final = "default"
"""What holds for types that have no profile of their own."""

TypePath = Annotated[str, Path(min_length=1, max_length=128)]


class ProfileItem(msgspec.Struct, frozen=True):
    """What holds for all devices of a type.

    `configured`: whether the type has a profile of its own, instead of that called "default". `metrics` are
    what readings must look like; `unknown_metrics` what becomes of those with others.
    """

    device_type: str
    configured: bool
    windows: tuple[WindowSpec, ...]
    lateness_s: float
    max_metrics: int
    offline_after_s: float
    downlink: str
    metrics: dict[str, MetricSpec]
    unknown_metrics: Outside
    ingest: Rates
    detectors: tuple[DetectorSpec, ...] = ()


class ProfileList(msgspec.Struct, frozen=True):
    """The profiles by type, "default" first."""

    items: list[ProfileItem]


VALUES: Final = (ProfileItem, ProfileList)
"""What is answered, for the API's document."""

_EXAMPLE: Final = {
    "device_type": "thermometer",
    "configured": True,
    "windows": [{"length_s": 900.0, "slide_s": 60.0}],
    "lateness_s": 300.0,
    "max_metrics": 256,
    "offline_after_s": 600.0,
    "downlink": "mqtt",
    "metrics": {
        "temperature": {
            "type": "number",
            "unit": "degC",
            "min": -40.0,
            "max": 85.0,
            "values": [],
            "required": True,
            "outside": "flag",
        }
    },
    "unknown_metrics": "allow",
    "ingest": {"every": {"rate_per_s": 5.0, "burst": 20}, "by_protocol": {}},
    "detectors": [{"detector": "ensemble", "metrics": [], "threshold": 0.5, "limit": None, "period": "day"}],
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["devices"])
    profiles = services.profiles

    @router.get(
        "/api/profiles",
        response_model=None,
        summary="List profiles",
        responses=answer(ProfileList, "By type.", {"items": [_EXAMPLE]}),
    )
    async def list_profiles() -> Response:
        """Those of the configuration, with what they take over from the one called `default`."""
        own = sorted(profiles.by_type.items())
        items = [_item(DEFAULT, profiles.default, configured=True)]
        return json_response(ProfileList(items + [_item(name, each, configured=True) for name, each in own]))

    @router.get(
        "/api/profiles/{device_type}",
        response_model=None,
        summary="Look at a profile",
        responses=answer(ProfileItem, "What holds for the type.", _EXAMPLE),
    )
    async def get_profile(device_type: TypePath) -> Response:
        """Of any type: where it has no profile of its own, the one called `default` holds."""
        configured = device_type == DEFAULT or device_type in profiles.by_type
        return json_response(_item(device_type, profiles.of(device_type), configured=configured))

    return router


def _item(device_type: str, profile: Profile, *, configured: bool) -> ProfileItem:
    schema = profile.schema
    return ProfileItem(
        device_type,
        configured,
        profile.windows,
        profile.lateness_s,
        profile.max_metrics,
        profile.offline_after_s,
        profile.downlink,
        {} if schema is None else schema.metrics,
        Outside.ALLOW if schema is None else schema.unknown,
        profile.rates,
        profile.detectors,
    )
