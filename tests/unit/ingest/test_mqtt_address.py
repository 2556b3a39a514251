import pytest

from sensorium.ingest.errors import InvalidAddress
from sensorium.ingest.mqtt_address import broker_address


def test_a_full_url() -> None:
    address = broker_address("mqtts://me:p%40ss%2Fword@broker.example:8884", ca_file="ca.pem")
    assert (address.host, address.port, address.tls) == ("broker.example", 8884, True)
    assert (address.username, address.password, address.ca_file) == ("me", "p@ss/word", "ca.pem")


def test_passwords_are_not_shown() -> None:
    address = broker_address("mqtt://me:secret@broker.example")
    assert str(address) == "mqtt://broker.example:1883"
    assert "secret" not in repr(address)


def test_the_usual_ports() -> None:
    assert broker_address("mqtt://h").port == 1883
    assert broker_address("mqtts://[::1]/").port == 8883
    assert broker_address("mqtts://[::1]/").host == "::1"


@pytest.mark.parametrize(
    "url",
    ["", "broker:1883", "http://broker", "mqtt://", "mqtt://h:port", "mqtt://h:99999", "mqtt://u:secret/x@h"],
)
def test_unusable_urls_are_refused_without_the_password(url: str) -> None:
    with pytest.raises(InvalidAddress) as refused:
        broker_address(url)
    assert "secret" not in str(refused.value)


def test_files_must_fit_the_scheme() -> None:
    with pytest.raises(InvalidAddress, match="mqtts"):
        broker_address("mqtt://h", ca_file="ca.pem")
    with pytest.raises(InvalidAddress, match="certificate"):
        broker_address("mqtts://h", key_file="key.pem")
    with pytest.raises(InvalidAddress, match="TLS files"):
        broker_address("mqtts://h", ca_file="/nonexistent").ssl_context()
