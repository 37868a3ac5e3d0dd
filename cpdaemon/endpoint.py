"""Addresses: text to endpoint and back; pure.

PATH, unix:PATH         a daemon on a UNIX socket; a bare path contains a `/`
HOST:PORT, [IPV6]:PORT  a daemon on TCP
http(s)://HOST[:PORT]/PATH    a server, without a daemon between
"""

import os.path
import sys

from cpdaemon.errors import EndpointError
from cpdaemon.value import Value

__all__ = ["DEFAULT_ENDPOINT", "Endpoint", "TcpEndpoint", "UnixEndpoint", "UrlEndpoint", "parse_endpoint"]

DEFAULT_ENDPOINT = "/var/run/creditapi.socket"

_MAX_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_MAX_PORT = 65_535
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
_URL_CHARACTERS = _HOST_CHARACTERS | frozenset("/~!$&'()*+,;=:@%")
_IPV6_CHARACTERS = frozenset("abcdefABCDEF0123456789:.")


class UnixEndpoint(Value):
    """A daemon's UNIX socket.

    Attributes:
        path: file name of the socket.
    """

    __match_args__ = ("path",)
    path: str

    def __init__(self, path: str) -> None:
        if not isinstance(path, str) or not path:
            raise EndpointError(f"UnixEndpoint({path!r}): give the path of a socket, as text")
        self._freeze(path=path)

    def __str__(self) -> str:
        return self.path if "/" in self.path else f"unix:{self.path}"


class TcpEndpoint(Value):
    """A daemon's TCP address.

    Attributes:
        host: name or address; IPv6 without brackets.
        port: 1 to 65535.
    """

    __match_args__ = ("host", "port")
    host: str
    port: int

    def __init__(self, host: str, port: int) -> None:
        if not isinstance(host, str) or not host or type(port) is not int or not 0 <= port <= _MAX_PORT:
            raise EndpointError(f"TcpEndpoint({host!r}, {port!r}): give a host as text, and a port up to {_MAX_PORT}")
        self._freeze(host=host, port=port)

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


class UrlEndpoint(Value):
    """A server's base URL.

    Attributes:
        scheme: "http" or "https".
        host: name or address; IPv6 without brackets.
        port: 1 to 65535.
        path: base path such as "/api", without a slash at its end; "" for none.
        ca: for https, file of the certificates of the authorities to trust, instead of the system's; PEM.
        client_cert: for https, file of the certificate that is shown to the server; PEM.
        client_key: file of its private key, unless it is in the same file.
    """

    __match_args__ = ("scheme", "host", "port", "path", "ca", "client_cert", "client_key")
    scheme: str
    host: str
    port: int
    path: str
    ca: str | None
    client_cert: str | None
    client_key: str | None

    def __init__(  # noqa: PLR0917 - a value is copied and pickled by its fields, in this order
        self,
        scheme: str,
        host: str,
        port: int,
        path: str,
        ca: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
    ) -> None:
        if scheme not in _DEFAULT_PORTS or not isinstance(path, str):
            raise EndpointError(f"UrlEndpoint({scheme!r}, ...): parse the URL with parse_endpoint")
        self._freeze(scheme=scheme, host=host, port=port, path=path)
        self._freeze(ca=ca, client_cert=client_cert, client_key=client_key)
        if scheme != "https" and (ca, client_cert, client_key) != (None, None, None):
            raise EndpointError(f"{self} has no TLS: a CA file and a client's certificate are for https://")
        if client_cert is None and client_key is not None:
            raise EndpointError("there is a client's private key without its certificate: give both")

    def with_tls(
        self, ca: str | None = None, client_cert: str | None = None, client_key: str | None = None
    ) -> "UrlEndpoint":
        """Return this endpoint with other files for TLS.

        Raises:
            EndpointError: it is not https, or a key has no certificate.
        """
        return UrlEndpoint(self.scheme, self.host, self.port, self.path, ca, client_cert, client_key)

    @property
    def authority(self) -> str:
        """Host, with the port unless it is the scheme's own: the value of a Host header."""
        host = _bracketed(self.host)
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


Endpoint = UnixEndpoint | TcpEndpoint | UrlEndpoint


def parse_endpoint(text: str) -> Endpoint:
    """Parse an address.

    Args:
        text: `PATH`, `unix:PATH`, `HOST:PORT`, `[IPV6]:PORT`, or an `http://` or `https://` URL. A path may
            start with `~` for a home directory.

    Raises:
        EndpointError: the text is not an address; the message says how to write it.
    """
    if not isinstance(text, str):
        raise EndpointError(f"an endpoint is text, not {type(text).__name__}")
    if not text:
        raise EndpointError("the endpoint is empty: write a socket path, HOST:PORT or a URL")
    if text != text.strip() or not text.isprintable():
        raise EndpointError("the endpoint has white space around it or unprintable characters in it: remove them")
    scheme, separator, rest = text.partition("://")
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix://" if text.startswith("unix:///") else "unix:"))
    if separator and "/" not in scheme:
        return _url(scheme.lower(), rest)
    if text.partition("/")[0].rpartition(":")[2].isdigit() and "/" in text:
        raise EndpointError("the endpoint is HOST:PORT with a path: write http:// or https:// before it, or no path")
    if text.startswith("~") or "/" in text:
        return _unix(text)
    if "@" in text:  # not quoted: what is before it may be secret
        raise EndpointError("HOST:PORT must not hold credentials (there is an '@'): give them separately")
    host, port = _host_and_port(text, None)
    return TcpEndpoint(host, port)


def _unix(text: str) -> UnixEndpoint:
    path = os.path.expanduser(text)  # noqa: PTH111 - pathlib takes longer to import than this whole package
    if path.startswith("~"):
        raise EndpointError(f"{text!r}: there is no such home directory: write the whole path, or ./{text}")
    if not path:
        raise EndpointError("there is no path after 'unix:': write unix:/PATH")
    size = len(os.fsencode(path))
    if size > _MAX_PATH_BYTES:
        raise EndpointError(
            f"{text!r} has {size} bytes, and the system takes at most {_MAX_PATH_BYTES} in a socket's path: "
            "use a shorter one, such as a relative path"
        )
    return UnixEndpoint(path)


def _url(scheme: str, rest: str) -> UrlEndpoint:
    if scheme not in _DEFAULT_PORTS:
        raise EndpointError(f"unknown scheme {scheme!r}: use http, https or unix")
    # The rest may hold secrets: no message quotes it before these two checks.
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise EndpointError("a URL must not hold credentials (there is an '@'): give them separately, as credentials")
    if "?" in rest or "#" in rest:
        raise EndpointError("a base URL has no query and no fragment: remove '?' or '#' and what follows")
    path = f"{slash}{path}".rstrip("/")
    if not _URL_CHARACTERS.issuperset(path):
        raise EndpointError(f"the path {path!r} holds characters that a URL cannot: percent-encode them")
    host, port = _host_and_port(authority, _DEFAULT_PORTS[scheme])
    return UrlEndpoint(scheme, host.lower(), port, path)


def _host_and_port(text: str, default: int | None) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not _is_ipv6(host):
            raise EndpointError(f"{text!r} is not an IPv6 address with a port: write [::1]:5667")
        colon, port = rest[:1], rest[1:]
    else:
        if text.count(":") > 1:
            raise EndpointError(f"{text!r} has several ':': write an IPv6 address in brackets, as [::1]:5667")
        host, colon, port = text.partition(":")
        if (
            not _HOST_CHARACTERS.issuperset(host)
            or host[:1] in {"", ".", "-"}
            or ".." in host
            or len(host) > 253
            or max(map(len, host.split("."))) > 63
        ):
            raise EndpointError(f"{text!r}: {host!r} is not a host name: write HOST:PORT, or a path with a '/'")
    if not colon and default is not None:
        return host, default
    if not port:
        raise EndpointError(f"{text!r} has no port: write HOST:PORT, or ./{text} if it is a socket")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise EndpointError(f"{text!r}: the port {port!r} is not a number from 1 to 65535")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    address, percent, zone = host.partition("%")
    return ":" in address and _IPV6_CHARACTERS.issuperset(address) and bool(percent) == bool(zone)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
