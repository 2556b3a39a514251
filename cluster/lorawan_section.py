"""The section `lorawan` of the configuration: network servers, and how frames are decoded."""

from typing import Annotated, Literal, Self

import msgspec
from pydantic import Field, SecretStr, model_validator

from sensorium.actors.units import MAX_UNIT_CHARS
from sensorium.cluster.sections import File, HttpUrl, Id, MqttUrl, Section
from sensorium.ingest.lorawan import layout
from sensorium.ingest.lorawan.adapter import (
    CayenneCodec,
    Codec,
    CommandLayout,
    LayoutCodec,
    LorawanSettings,
    ScriptCodec,
)
from sensorium.ingest.lorawan.carriers import TtsSettings
from sensorium.ingest.lorawan.scripts import MAX_PORT
from sensorium.ingest.mqtt_address import BrokerAddress, broker_address

MAX_SCRIPT_BYTES = 1024 * 1024
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class LayoutField(Section):
    """A metric in a frame: its number times `scale`, plus `add`."""

    name: _Name
    offset: Annotated[int, Field(ge=-255, le=255)]
    """Of its first byte; below 0 from the end of the frame."""
    type: layout.FieldType
    endian: Literal["big", "little"] = "big"
    scale: _Finite = 1.0
    add: _Finite = 0.0
    bits: Annotated[list[Annotated[int, Field(ge=0, le=32)]], Field(min_length=2, max_length=2)] | None = None
    """Of an unsigned number or bool: the lowest bit, and how many."""
    f_port: Annotated[int, Field(ge=0, le=255)] | None = None
    """Only in frames of this port."""
    optional: bool = False
    """Whether a frame may end before it."""
    unit: Annotated[str, Field(min_length=1, max_length=MAX_UNIT_CHARS)] | None = None
    """Of the number; the device's profile may have another one."""

    @model_validator(mode="after")
    def _bits_fit(self) -> Self:
        if self.bits is not None:
            low, count = self.bits
            if not (self.type == "bool" or self.type.startswith("u")):
                raise ValueError(f"bits need an unsigned type or bool, not {self.type}")
            if count < 1 or low + count > 8 * layout.SIZES[self.type]:
                raise ValueError(f"bits {low} to {low + count - 1} are not in a {self.type}")
        return self

    def field(self) -> layout.Field:
        """As the decoder takes it."""
        settings = self.model_dump()
        return layout.Field(**{**settings, "bits": None if self.bits is None else tuple(self.bits)})


class LayoutCommand(Section):
    """How the frame of a command is made: its parameters are the layout's fields."""

    f_port: Annotated[int, Field(ge=1, le=MAX_PORT)]
    confirmed: bool = True
    """Whether the device must acknowledge it; otherwise it has succeeded when it was transmitted."""
    layout: Annotated[list[LayoutField], Field(max_length=256)] = Field(default_factory=list)
    """`scale` and `add` as for decoding: what is sent is the value less `add`, divided by `scale`."""

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        for field in self.layout:
            if field.offset < 0 or field.scale == 0:
                raise ValueError(f"{field.name}: a command's offset counts from 0, its scale is not 0")
            if field.f_port is not None:
                raise ValueError(f"{field.name}: the port is the command's")
        return self

    def command(self) -> CommandLayout:
        """As the encoder takes it."""
        return CommandLayout(self.f_port, tuple(each.field() for each in self.layout), self.confirmed)


class LorawanCodec(Section):
    """How the frames of one profile are decoded, by one of the three; and how commands are encoded."""

    cayenne: bool = False
    layout: Annotated[list[LayoutField], Field(min_length=1, max_length=256)] | None = None
    javascript: File | None = None
    """A file with `decodeUplink` and `encodeDownlink` (TS013), or with the older `Decoder` or `Decode`."""
    commands: dict[_Name, LayoutCommand] = Field(default_factory=dict)
    """By the command's name; the others are for the script's `encodeDownlink`, if there is one."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.cayenne + (self.layout is not None) + (self.javascript is not None) != 1:
            raise ValueError("give one of cayenne, layout and javascript")
        if self.javascript is not None and self.javascript.stat().st_size > MAX_SCRIPT_BYTES:
            raise ValueError(f"the script has more than {MAX_SCRIPT_BYTES} bytes")
        return self

    def codec(self) -> Codec:
        """As the adapter takes it."""
        if self.layout is not None:
            return LayoutCodec(tuple(each.field() for each in self.layout))
        if self.javascript is not None:
            return ScriptCodec(self.javascript.read_text(encoding="utf-8", errors="replace"))
        return CayenneCodec()


class Lorawan(Section):
    """LoRaWAN network servers. Devices are known by their DevEUI in lower case."""

    chirpstack: bool = False
    """Whether to subscribe to the events that ChirpStack v4 publishes at the broker."""
    tts_secret: Annotated[SecretStr, Field(min_length=16)] | None = None
    """What webhooks of The Things Stack send in `X-Webhook-Secret`; without it there is no such webhook."""
    tts_url: HttpUrl | None = None
    """Of The Things Stack, such as https://eu1.cloud.thethings.network, for commands."""
    tts_api_key: SecretStr | None = None
    """With the right to write downlink traffic of the application."""
    tts_webhook: Id = "sensorium"
    """The id of the application's webhook there."""
    tts_mqtt_url: MqttUrl | None = None
    """Of its MQTT server, such as mqtts://eu1.cloud.thethings.network, instead of a webhook."""
    tts_user: Annotated[str, Field(pattern=r"^[a-z0-9-]{2,36}(@[a-z0-9-]{2,36})?$")] | None = None
    """The user there: the application's id, and its tenant, as in app@ttn."""
    tts_ca_file: File | None = None
    """Whom to trust for that server, where it is not a public authority."""
    codecs: dict[_Name, LorawanCodec] = Field(default_factory=dict)
    """By the device's profile (ChirpStack), model or application (The Things Stack); `default` for others."""

    @model_validator(mode="after")
    def _key_and_urls(self) -> Self:
        if (self.tts_url is None and self.tts_mqtt_url is None) != (self.tts_api_key is None):
            raise ValueError("tts_api_key goes together with tts_url or tts_mqtt_url")
        if (self.tts_mqtt_url is None) != (self.tts_user is None):
            raise ValueError("tts_mqtt_url and tts_user go together")
        if self.tts_ca_file is not None and not (self.tts_mqtt_url or "").startswith("mqtts://"):
            raise ValueError("tts_ca_file needs a tts_mqtt_url that starts with mqtts://")
        return self

    def tts(self) -> TtsSettings | None:
        """Where commands go by HTTP; None: nowhere."""
        if self.tts_url is None or self.tts_api_key is None:
            return None
        return TtsSettings(
            url=self.tts_url, api_key=self.tts_api_key.get_secret_value(), webhook=self.tts_webhook
        )

    def tts_mqtt(self) -> BrokerAddress | None:
        """The MQTT server of The Things Stack; None: there is none."""
        if self.tts_mqtt_url is None or self.tts_api_key is None:
            return None
        address = broker_address(self.tts_mqtt_url, str(self.tts_ca_file) if self.tts_ca_file else None)
        key = self.tts_api_key.get_secret_value()
        return msgspec.structs.replace(address, username=self.tts_user, password=key)

    def settings(self) -> LorawanSettings:
        """As the ways in take it."""
        return LorawanSettings(
            codecs={name: codec.codec() for name, codec in self.codecs.items()},
            commands={
                name: {command: made.command() for command, made in codec.commands.items()}
                for name, codec in self.codecs.items()
                if codec.commands
            },
            chirpstack=self.chirpstack,
            tts_secret=None if self.tts_secret is None else self.tts_secret.get_secret_value(),
        )
