"""Addresses with credentials in them: checking them, and showing them without the secret."""

from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

HIDDEN = "***"
_SECRET_PARAMETERS = frozenset({"password", "sslpassword", "token", "passfile"})


def redacted(url: str) -> str:
    """The URL with its password (and secret query parameters) replaced; what is no URL is hidden whole."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    if not parts.scheme or "://" not in url:
        return HIDDEN
    user, at, place = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    netloc = f"{name}{colon}{HIDDEN if colon else ''}{at}{place}"
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if any(key.lower() in _SECRET_PARAMETERS for key, _ in pairs):
        pairs = [(key, HIDDEN if key.lower() in _SECRET_PARAMETERS else value) for key, value in pairs]
        return urlunsplit(parts._replace(netloc=netloc, query=urlencode(pairs, safe="*")))
    return urlunsplit(parts._replace(netloc=netloc))


def by_host(url: str) -> list[str]:
    """A URL that names several hosts, with commas between them, as one URL for each."""
    scheme, mark, rest = url.partition("://")
    end = next((i for i, letter in enumerate(rest) if letter in "/?#"), len(rest))
    user, at, hosts = rest[:end].rpartition("@")
    return [f"{scheme}{mark}{user}{at}{host}{rest[end:]}" for host in hosts.split(",")]


def check(url: str, schemes: Collection[str], *, path: bool = True, host: bool = True) -> str:
    """The URL unchanged when its scheme is among `schemes` and it names what it must.

    Raises:
        ValueError: says what is wrong, without repeating the URL, which may hold a password.
    """
    wanted = " or ".join(f"{scheme}://" for scheme in sorted(schemes))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not a valid address: {_without_value(error)}") from None
    if parts.scheme not in schemes:
        raise ValueError(f"must start with {wanted}")
    if host and not parts.hostname:
        raise ValueError(f"names no host: write {wanted}HOST[:PORT]")
    if port == 0:
        raise ValueError("port 0 cannot be connected to")
    if not path and (parts.path not in ("", "/") or parts.query or parts.fragment):
        raise ValueError("takes no path, query or fragment after HOST[:PORT]")
    return url


def _without_value(error: ValueError) -> str:
    # urlsplit quotes the offending piece; a password with an unescaped '/' or '#' lands in it.
    text = str(error)
    return "the port must be a number from 1 to 65535" if "ort" in text else text.split(":")[0]
