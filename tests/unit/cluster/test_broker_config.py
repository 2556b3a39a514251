"""The configuration of a broker: what stands in it, and what is refused."""

from pathlib import Path

import pytest

from sensorium.cluster.broker_config import BrokerFiles, BrokerSettings, acl, conf, next_steps, written
from sensorium.cluster.errors import ConfigError


@pytest.fixture
def settings(tmp_path: Path) -> BrokerSettings:
    paths = [tmp_path / name for name in ("ca.pem", "broker.pem", "broker.key")]
    for path in paths:
        path.touch()
    return BrokerSettings(tmp_path / "broker", BrokerFiles(*paths))


def test_both_files_are_written_and_written_again(settings: BrokerSettings) -> None:
    assert [path.name for path in written(settings)] == ["mosquitto.conf", "acl"]
    assert written(settings)[0].read_text() == conf(settings)
    assert "8884" in next_steps(settings)


def test_a_file_of_somebody_else_stays(settings: BrokerSettings) -> None:
    settings.directory.mkdir()
    (settings.directory / "acl").write_text("user me\n")
    with pytest.raises(ConfigError, match="was not written by this command"):
        written(settings)
    assert not (settings.directory / "mosquitto.conf").exists()


def test_what_is_missing_or_cannot_be_is_named(settings: BrokerSettings) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.pem: no such file"):
        written(settings._replace(files=settings.files._replace(crl=Path("nowhere.pem"))))
    with pytest.raises(ConfigError, match="cannot be a name"):
        written(settings._replace(account="a\ntopic #"))
    with pytest.raises(ConfigError, match="two ports"):
        written(settings._replace(port=8884))


def test_rights_of_others_are_given_where_they_are_wanted(settings: BrokerSettings) -> None:
    assert "spBv1.0" not in acl(settings)
    assert "application" not in acl(settings)
    rights = acl(settings._replace(network_servers=("chirpstack",), sparkplug_groups=["plant"]))
    assert "user chirpstack\ntopic write application/+/device/+/event/+\n" in rights
    assert "pattern write spBv1.0/plant/DDATA/%u/+\n" in rights
    assert "pattern write spBv1.0/+/NDATA/%u\n" in acl(settings._replace(sparkplug_groups=[]))


def test_the_platform_may_have_an_authority_of_its_own(settings: BrokerSettings, tmp_path: Path) -> None:
    own = settings._replace(files=settings.files._replace(platform_ca=tmp_path / "own.pem"))
    devices, platform = conf(own).split("listener ")[1:]
    assert "ca.pem" in devices
    assert "own.pem" in platform
    assert "use_username_as_clientid true" in devices
    assert "use_username_as_clientid" not in platform
