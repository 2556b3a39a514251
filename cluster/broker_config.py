"""The configuration of a Mosquitto for a platform and its devices: TLS, certificates as identities, rights.

It says what the broker's own files must say; keys and certificates are made elsewhere and only named here.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sensorium.cluster.errors import ConfigError
from sensorium.ingest.sparkplug.address import FROM_DEVICES, FROM_NODES, NAMESPACE

TARGETS: Final = ("mosquitto",)
CONF: Final = "mosquitto.conf"
ACL: Final = "acl"

DEVICE_WRITES: Final = (
    "telemetry",
    "status",
    "commands/+/response",
    "twin/reported",
    "firmware/progress",
)
"""What a device may publish below `devices/{its name}/` …"""
DEVICE_READS: Final = ("commands", "twin/desired", "firmware")
"""… and what it may subscribe to there."""

QUEUED_MESSAGES: Final = 1_000_000
"""Kept for one session that is away, which is the platform's; more are dropped, the newest first."""

_MARK: Final = "# Written by `sensorium broker-config`: write it anew rather than change it."
_NAME: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")


class BrokerFiles(NamedTuple):
    """Where the certificates are, in PEM. The broker must be able to read them.

    Attributes:
        ca: who signs the devices' certificates.
        cert, key: the broker's own.
        platform_ca: who signs that of the platform, where it is another one.
        crl: certificates that were revoked; reread on SIGHUP.
    """

    ca: Path
    cert: Path
    key: Path
    platform_ca: Path | None = None
    crl: Path | None = None


class BrokerSettings(NamedTuple):
    """What is to be written.

    Attributes:
        directory: of the files, and of what the broker keeps.
        account: the common name in the platform's certificate, which may do all.
        port, host: where devices connect.
        platform_port, platform_host: where the platform does: there a client chooses its client id.
        network_servers: common names of ChirpStack servers.
        sparkplug_groups: whose edge nodes have rights; None: there are none; empty: all.
        user: whom the broker becomes when root starts it.
    """

    directory: Path
    files: BrokerFiles
    account: str = "sensorium"
    port: int = 8883
    host: str = "0.0.0.0"
    platform_port: int = 8884
    platform_host: str = "127.0.0.1"
    network_servers: Sequence[str] = ()
    sparkplug_groups: Sequence[str] | None = None
    user: str = "mosquitto"


def written(settings: BrokerSettings) -> list[Path]:
    """Write the files, replacing those that were written so before.

    Raises:
        ConfigError: a name cannot be one; a file is missing, or is somebody else's.
    """
    files = settings.files
    for path in (files.ca, files.cert, files.key, files.platform_ca, files.crl):
        if path is not None and not path.is_file():
            raise ConfigError(f"{path}: no such file; docs/broker.md says how to make it")
    for name in (settings.account, *settings.network_servers, settings.user):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a name: letters, digits and _.:@- are taken")
    if settings.port == settings.platform_port:
        raise ConfigError(f"devices and the platform need two ports, not {settings.port} for both")
    texts = {settings.directory / CONF: conf(settings), settings.directory / ACL: acl(settings)}
    for path in texts:
        if path.exists() and not path.read_text(errors="replace").startswith(_MARK):
            raise ConfigError(f"{path} was not written by this command; move it away first")
    settings.directory.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
        path.chmod(0o640 if path.name == ACL else 0o644)
    return list(texts)


def conf(settings: BrokerSettings) -> str:
    """`mosquitto.conf`."""
    directory = settings.directory.absolute()
    files = settings.files
    revoked = [] if files.crl is None else [f"crlfile {files.crl.absolute()}"]
    lines = [
        _MARK,
        f"user {settings.user}",
        "per_listener_settings false",
        "allow_anonymous false",
        f"acl_file {directory / ACL}",
        "",
        "# Sessions and what is queued for them outlive the broker.",
        "persistence true",
        f"persistence_location {directory}/",
        "autosave_interval 60",
        "max_inflight_messages 0",
        f"max_queued_messages {QUEUED_MESSAGES}",
        "max_packet_size 1048576",
        "",
        "# Devices. Their certificate's name is also the client id: nobody can take another's session.",
        f"listener {settings.port} {settings.host}",
        *_tls(files.ca, files.cert, files.key),
        *revoked,
        "use_username_as_clientid true",
        "",
        "# The platform, which has several connections: keep this port from devices.",
        f"listener {settings.platform_port} {settings.platform_host}",
        *_tls(files.platform_ca or files.ca, files.cert, files.key),
        *(revoked if files.platform_ca is None else []),
    ]
    return "\n".join(lines) + "\n"


def _tls(ca: Path, cert: Path, key: Path) -> list[str]:
    return [
        f"cafile {ca.absolute()}",
        f"certfile {cert.absolute()}",
        f"keyfile {key.absolute()}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
    ]


def acl(settings: BrokerSettings) -> str:
    """The rights: of the platform, of each device, and of gateways to other networks."""
    lines = [_MARK, f"user {settings.account}", "topic readwrite #", ""]
    for server in settings.network_servers:
        lines += [
            f"user {server}",
            "topic write application/+/device/+/event/+",
            "topic read application/+/device/+/command/+",
            "",
        ]
    lines.append("# A device: %u is the common name in its certificate, which is its id.")
    lines += [f"pattern write devices/%u/{topic}" for topic in DEVICE_WRITES]
    lines += [f"pattern read devices/%u/{topic}" for topic in DEVICE_READS]
    if settings.sparkplug_groups is not None:
        lines += ["", "# An edge node of Sparkplug: the common name is that of the edge node."]
        for group in settings.sparkplug_groups or ("+",):
            lines += [f"pattern write {NAMESPACE}/{group}/{kind}/%u" for kind in FROM_NODES]
            lines += [f"pattern write {NAMESPACE}/{group}/{kind}/%u/+" for kind in FROM_DEVICES]
            lines += [
                f"pattern read {NAMESPACE}/{group}/NCMD/%u",
                f"pattern read {NAMESPACE}/{group}/DCMD/%u/+",
            ]
        lines.append(f"pattern read {NAMESPACE}/STATE/+")
    return "\n".join(lines) + "\n"


def next_steps(settings: BrokerSettings) -> str:
    """What to do with the files."""
    host = "127.0.0.1" if settings.platform_host in ("0.0.0.0", "::") else settings.platform_host
    return (
        f"start the broker:    mosquitto -c {settings.directory.absolute() / CONF}\n"
        f"start the platform:  MQTT_BROKER_URL=mqtts://{host}:{settings.platform_port} MQTT_CA_FILE=… "
        f"MQTT_CERT_FILE=… MQTT_KEY_FILE=… sensorium up\n"
        f"                     with a certificate of the common name {settings.account}"
    )
