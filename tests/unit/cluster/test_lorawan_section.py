"""The section `lorawan`: what it makes of codecs, and how it says what is wrong."""

from pathlib import Path

import pytest

from sensorium.cluster.config import load
from sensorium.cluster.errors import ConfigError
from sensorium.ingest.lorawan.adapter import CayenneCodec, CommandLayout, LayoutCodec, ScriptCodec
from sensorium.ingest.lorawan.layout import Field


def load_text(tmp_path: Path, text: str):
    (tmp_path / "codec.js").write_text("function decodeUplink(input) {}")
    file = tmp_path / "platform.yaml"
    file.write_text(text.replace("DIR", str(tmp_path)))
    return load(file)


def test_codecs_of_all_kinds(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        """
lorawan:
  chirpstack: true
  tts_secret: 0123456789abcdef
  codecs:
    default: {cayenne: true}
    door: {javascript: DIR/codec.js}
    tank: {layout: [{name: level, offset: 0, type: u16, scale: 0.1, bits: [0, 14], f_port: 2}]}
""",
    )
    settings = config.lorawan.settings()
    assert settings.codecs == {
        "default": CayenneCodec(),
        "door": ScriptCodec("function decodeUplink(input) {}"),
        "tank": LayoutCodec((Field(name="level", offset=0, type="u16", scale=0.1, bits=(0, 14), f_port=2),)),
    }
    assert (settings.chirpstack, settings.tts_secret) == (True, "0123456789abcdef")
    assert "0123456789abcdef" not in str(config.describe())


def test_commands_have_layouts(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        """
lorawan:
  tts_url: https://eu1.example.org
  tts_api_key: NNSXS.SECRET
  codecs:
    valve:
      cayenne: true
      commands: {open: {f_port: 3, layout: [{name: percent, offset: 0, type: u8}]}}
""",
    )
    made = CommandLayout(3, (Field(name="percent", offset=0, type="u8"),), True)
    assert config.lorawan.settings().commands == {"valve": {"open": made}}
    tts = config.lorawan.tts()
    assert tts is not None
    assert (tts.url, tts.api_key, tts.webhook) == ("https://eu1.example.org", "NNSXS.SECRET", "sensorium")
    assert "SECRET" not in str(config.describe())
    with pytest.raises(ConfigError, match="goes together"):
        load_text(tmp_path, "lorawan: {tts_url: 'https://eu1.example.org'}")


def test_the_things_stack_may_be_read_by_mqtt(tmp_path: Path) -> None:
    text = "lorawan: {tts_mqtt_url: 'mqtts://eu1.example.org', tts_user: app@ttn, tts_api_key: NNSXS.SECRET}"
    config = load_text(tmp_path, text)
    address = config.lorawan.tts_mqtt()
    assert address is not None
    assert (str(address), address.username, address.password) == (
        "mqtts://eu1.example.org:8883",
        "app@ttn",
        "NNSXS.SECRET",
    )
    assert "SECRET" not in str(config.describe())
    with pytest.raises(ConfigError, match="tts_mqtt_url and tts_user go together"):
        load_text(tmp_path, "lorawan: {tts_mqtt_url: 'mqtt://eu1.example.org', tts_api_key: k}")


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("{}", "lorawan.codecs.x: give one of cayenne, layout and javascript"),
        ("{cayenne: true, javascript: DIR/codec.js}", "give one of cayenne, layout and javascript"),
        ("{javascript: /nowhere.js}", "lorawan.codecs.x.javascript: no such file"),
        ("{cayene: true}", "cayene: unknown key; did you mean lorawan.codecs.x.cayenne?"),
        ("{layout: [{name: a, offset: 0, typ: u8}]}", "did you mean lorawan.codecs.x.layout[0].type?"),
        ("{layout: [{name: a, offset: 0, type: i8, bits: [0, 1]}]}", "bits need an unsigned type or bool"),
        (
            "{cayenne: true, commands: {open: {f_port: 3, layout: [{name: a, offset: -1, type: u8}]}}}",
            "a: a command's offset counts from 0",
        ),
        ("{layout: [{name: a, offset: 0, type: u8, bits: [6, 3]}]}", "bits 6 to 8 are not in a u8"),
    ],
)
def test_a_mistake_says_where_it_is(tmp_path: Path, codec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, f"lorawan: {{codecs: {{x: {codec}}}}}")
    assert message in str(caught.value)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lorawan\.tts_secret"):
        load_text(tmp_path, "lorawan: {tts_secret: short}")
