"""What is known of a model besides its numbers. Needs neither numpy nor what fits."""

import re
from typing import Final, Literal

import msgspec

from sensorium.actors.errors import InvalidMessage

Kind = Literal["outliers", "failure"]
MAX_METRICS: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Contribution(msgspec.Struct, frozen=True):
    """What a feature has to do with a score.

    Attributes:
        metric: the metric that the feature is made of; of a pair, the first.
        share: its part of all that speaks for an anomaly, 0 to 1.
        value, expected: what the feature is, and what it was in training.
    """

    feature: str
    metric: str
    share: float
    value: float
    expected: float


class ModelInfo(msgspec.Struct, frozen=True):
    """One version of a model, as a registry shows it.

    Attributes:
        version: 1, 2, … as the registry counts them; 0 before it is there.
        device_type: whose readings it judges.
        features: what it looks at.
        since_ms, until_ms: the time that it was trained on, by event time.
        devices, rows: how many, and their readings or windows.
        left_out: devices and metrics that were not taken, and why, in a line each.
        scores: how well it did in training.
        settings: what it was told.
        libraries: their versions at the training.
        sha256, size_bytes: of the artefact.
    """

    name: str
    version: int
    kind: Kind
    device_type: str
    metrics: tuple[str, ...]
    features: tuple[str, ...]
    trained_ms: int
    since_ms: int
    until_ms: int
    devices: int
    rows: int
    left_out: tuple[str, ...] = ()
    scores: dict[str, float] = {}
    settings: dict[str, float | str] = {}
    libraries: dict[str, str] = {}
    sha256: str = ""
    size_bytes: int = 0

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"


class ActiveModel(msgspec.Struct, frozen=True):
    """A model at work: what hosts are given. `numbers` is what `plain.decode` takes."""

    info: ModelInfo
    numbers: bytes
    activated_ms: int = 0


def check_name(name: str) -> str:
    """The name itself. Raises `InvalidMessage` where it could not be a folder's."""
    if _NAME.fullmatch(name) is None:
        raise InvalidMessage(
            f"{name!r} is no name of a model: up to 64 letters, digits, _ . -, a letter or digit first"
        )
    return name
