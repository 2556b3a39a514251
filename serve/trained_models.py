"""`/api/analytics/models`: which models were trained, and which judge the devices."""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Response

from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.serve.describe import answer
from sensorium.serve.pages import json_response
from sensorium.serve.services import ListsModels


class ModelItem(msgspec.Struct, frozen=True):
    """A version of a model. `active`: whether it judges the readings of its device type."""

    model: ModelInfo
    active: bool
    activated_ms: int | None


class ModelList(msgspec.Struct, frozen=True):
    """All of them, by name, the newest version of each first. One that is at work is here even if the
    registry has forgotten it."""

    items: list[ModelItem]


VALUES: Final = (ModelList,)
_SHOWN: Final[dict[str, Any]] = {
    "model": {
        "name": "pumps",
        "version": 3,
        "kind": "outliers",
        "device_type": "pump",
        "metrics": ["flow", "power"],
        "features": ["mean(flow, 10 readings)"],
        "trained_ms": 1_767_225_600_000,
        "since_ms": 1_766_016_000_000,
        "until_ms": 1_767_225_600_000,
        "devices": 12,
        "rows": 240_000,
        "left_out": ["pump-9: 12 readings with these metrics are fewer than 100"],
        "scores": {},
        "settings": {"limit": 5.0},
        "libraries": {"scikit-learn": "1.9.1", "skops": "0.16.0"},
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "size_bytes": 5_120,
    },
    "active": True,
    "activated_ms": 1_767_225_700_000,
}


def routes(models: ListsModels) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["analytics"])

    @router.get(
        "/api/analytics/models",
        response_model=None,
        summary="List trained models",
        responses=answer(ModelList, "All of them.", {"items": [_SHOWN]}),
    )
    async def list_models() -> Response:
        """They are trained and set to work by `sensorium train` and `sensorium models`."""
        active = {one.info.label: one for one in await models.active()}
        infos = {info.label: info for info in await models.all()}
        infos |= {label: one.info for label, one in active.items() if label not in infos}
        ordered = sorted(infos.values(), key=lambda info: (info.name, -info.version))
        return json_response(ModelList([_item(info, active.get(info.label)) for info in ordered]))

    return router


def _item(info: ModelInfo, active: ActiveModel | None) -> ModelItem:
    return ModelItem(info, active is not None, None if active is None else active.activated_ms)
