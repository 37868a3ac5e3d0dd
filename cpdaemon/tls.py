"""TLS: which certificates are trusted and shown, from files in PEM format; the only module that imports ssl."""

import ssl

from cpdaemon.endpoint import UrlEndpoint
from cpdaemon.errors import EndpointError

__all__ = ["client_context", "show_certificate"]

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_KEY = "PRIVATE KEY-----"


def client_context(endpoint: UrlEndpoint) -> ssl.SSLContext:
    """Return what verifies an https server's certificate, and shows the client's, if it has one.

    Raises:
        EndpointError: a file cannot be used.
    """
    if endpoint.ca is not None:
        _check(endpoint.ca, "the CA file", _CERTIFICATE, "certificate")
    try:
        context = ssl.create_default_context(cafile=endpoint.ca)
    except ssl.SSLError as error:
        raise EndpointError(f"the CA file {endpoint.ca} is damaged: {error.reason}") from error
    if endpoint.client_cert is not None:
        show_certificate(context, endpoint.client_cert, endpoint.client_key)
    return context


def show_certificate(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Have a new context show a certificate.

    Args:
        context: of a client or a server.
        certificate: file of the certificate, and of those between it and its authority.
        key: file of its private key; by default the certificate's file.

    Raises:
        EndpointError: a file cannot be used, and the context neither.
    """
    key = certificate if key is None else key
    _check(certificate, "the certificate", _CERTIFICATE, "certificate")
    if "ENCRYPTED" in _check(key, "the private key", _KEY, "private key"):
        raise EndpointError(f"the private key {key} is encrypted: decrypt it, as by `openssl pkey -in {key} -out FILE`")
    try:
        context.load_cert_chain(certificate, key, _no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise EndpointError(f"the private key {key} is not that of the certificate {certificate}") from error
        raise EndpointError(f"the certificate {certificate} or its private key {key} is damaged: {error}") from error


def _no_passphrase() -> str:
    """Return a passphrase that is wrong, where ssl would ask for one at the terminal."""
    return "-"


def _check(path: str, what: str, label: str, content: str) -> str:
    """Return a file's text, if it has a block in PEM format; raises EndpointError."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib takes long to import
            text = file.read()
    except OSError as error:
        raise EndpointError(f"{what} {path} cannot be read: {error.strerror}") from error
    if label not in text:
        raise EndpointError(f"{what} {path} has no {content} in PEM format")
    return text
