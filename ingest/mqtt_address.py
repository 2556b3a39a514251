"""Where a broker is and how to prove who we are: `mqtts://user:password@host:port` as a value."""

import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from sensorium.ingest.errors import InvalidAddress

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A broker and our credentials there. Parse one with `broker_address`.

    Attributes:
        ca_file: whom we trust to sign the broker's certificate; None means the system's authorities.
        cert_file, key_file: our own certificate, for brokers that ask for one.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def ssl_context(self) -> ssl.SSLContext | None:
        """The context to connect with, or None without TLS. Raises `InvalidAddress` for unusable files."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:
            raise InvalidAddress(f"cannot read the TLS files for {self}: {error}") from error
        return context

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<BrokerAddress {self}>"


def broker_address(
    url: str, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> BrokerAddress:
    """Parse `mqtt://` or `mqtts://` with user, password and port as far as they are given.

    Raises `InvalidAddress`, whose message never holds the password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # What it found wrong may be a piece of the password.
        raise InvalidAddress("the broker's URL has no valid host and port; escape odd characters") from None
    if parts.scheme not in _PORTS:
        raise InvalidAddress(f"a broker's URL starts with mqtt:// or mqtts://, not {parts.scheme!r}")
    if not parts.hostname:
        raise InvalidAddress("the broker's URL names no host")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidAddress(
            "the broker's URL ends after the port; is a character of the password not escaped?"
        )
    tls = parts.scheme == "mqtts"
    files: dict[str, Any] = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
    if not tls and any(files.values()):
        raise InvalidAddress("certificates are given, but the broker's URL is mqtt://; use mqtts://")
    if key_file is not None and cert_file is None:
        raise InvalidAddress("a key file is given without its certificate")
    return BrokerAddress(
        host=parts.hostname,
        port=_PORTS[parts.scheme] if port is None else port,
        tls=tls,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        **files,
    )
