"""The section `sparkplug`: names of devices, and how it says what is wrong."""

from pathlib import Path

import pytest

from sensorium.cluster.config import Config, load
from sensorium.cluster.errors import ConfigError
from sensorium.ingest.sparkplug.address import Address


def load_text(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "sensorium.yaml"
    file.write_text(text)
    return load(file)


def test_it_is_off_and_names_devices_by_their_topics(tmp_path: Path) -> None:
    section = load_text(tmp_path, "sparkplug: {groups: [plant]}").sparkplug
    assert not section.enabled
    assert section.naming().id_of(Address("plant", "line1", "oven")) == "plant:line1:oven"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("device_id: '{node}'", "sparkplug.device_id: must hold {device}"),
        ("node_id: '{device}'", "no placeholder {device}; there are group, node"),
        ("device_id: 'a/{device}'", "device ids have no /"),
        ("groups: ['a/b']", "sparkplug.groups[0]"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, f"sparkplug: {{{settings}}}")
    assert says in str(caught.value)
