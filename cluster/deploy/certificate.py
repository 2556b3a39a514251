"""The certificate of a node, which the node makes for itself when its Ray starts.

Ray's processes reach each other by address, and check that the certificate names it. What addresses a machine
has is known on the machine alone: clouds and Kubernetes give them out late.
"""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sensorium.cluster.errors import ConfigError

AUTHORITY: Final = ("ca.crt", "ca.key")
FILES: Final = ("ca.crt", "tls.crt", "tls.key")

_AHEAD: Final = timedelta(hours=1)
"""By which a node's clock may be late."""

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


def authority(ca_file: Path, ca_key_file: Path) -> tuple[x509.Certificate, _Key]:
    """The certificate authority in two PEM files.

    Raises:
        ConfigError: one of them is something else, they are no pair, it may sign nothing, or it is over.
    """
    try:
        certificate = x509.load_pem_x509_certificate(ca_file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{ca_file}: is no certificate in PEM") from error
    try:
        key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{ca_key_file}: is no private key in PEM without a password") from error
    if not isinstance(key, _Key) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{ca_key_file}: is not the key of {ca_file}")
    try:
        signs = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        signs = False
    if not signs:
        raise ConfigError(f"{ca_file}: is the certificate of no authority (CA:TRUE)")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"{ca_file}: was valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    return certificate, key


def make(source: Path, directory: Path, more_names: Iterable[str] = ()) -> None:
    """Write `FILES` into the directory: a certificate for every address and name of this machine.

    It is valid as long as the authority's own.

    Args:
        source: the folder with `AUTHORITY`.
        more_names: further names or addresses that this machine is reached by.

    Raises:
        ConfigError: the authority cannot be used, or the files cannot be written.
    """
    issuer, issuer_key = authority(*(source / name for name in AUTHORITY))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64])])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _AHEAD)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_names({*_own_names(), *more_names}), critical=False)
    )
    # Signatures by Edwards curves have their hash built in.
    plain = not isinstance(issuer_key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    certificate = builder.sign(issuer_key, hashes.SHA256() if plain else None)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    texts = (issuer.public_bytes(pem), certificate.public_bytes(pem), private)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in zip(FILES, texts, strict=True):
            fresh = directory / f".{name}"
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(text)
            fresh.rename(directory / name)
    except OSError as error:
        raise ConfigError(f"{directory}: the certificate cannot be written: {error.strerror}") from error


def _own_names() -> set[str]:
    addresses = {
        address.address.partition("%")[0]  # an IPv6 address of a link has its interface behind it
        for of_interface in psutil.net_if_addrs().values()
        for address in of_interface
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    return {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn(), *addresses}


def _names(names: Iterable[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in sorted(names):
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            with suppress(ValueError):  # a host's name may hold what no certificate may
                found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)
