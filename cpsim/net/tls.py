"""The certificate that a server shows."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from cpdaemon.errors import EndpointError
from cpdaemon.tls import show_certificate
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from pathlib import Path


class ServerCertificate:
    """A certificate and its private key, from files in PEM format.

    Args:
        certificate: the file of the certificate, and of those between it and its authority.
        key: the file of its private key; by default the certificate's file.

    Raises:
        CpsimError: a file cannot be used.

    Attributes:
        context: what shows it to clients: another one once it was read again.
    """

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self._files = str(certificate), None if key is None else str(key)
        self.read()

    def read(self) -> None:
        """Read the files, for further connections.

        Raises:
            CpsimError: one cannot be used; the certificate stays as it was.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # one that had another could show both
        try:
            show_certificate(context, *self._files)
        except EndpointError as error:
            raise CpsimError(str(error)) from error
        self.context = context
