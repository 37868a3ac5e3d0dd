"""Who may use the control API.

With a token, whoever shows it. Without one, whoever is on this machine, but not the pages that a browser on this
machine shows: a page of another site that posts here says so in its `Origin`, and one that had its own name resolve
to this machine says that name in its `Host`.
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from typing import TYPE_CHECKING, Final

from cpsim.net.http.messages import Failure
from cpsim.net.listen import is_loopback

if TYPE_CHECKING:
    from cpsim.net.http.messages import Request

SCHEME: Final = b"bearer "
BASIC: Final = b"basic "


class Access:
    """Lets requests in, or not.

    Args:
        host: where the server listens.
        token: what every request has to show as `Authorization: Bearer TOKEN`; None where `host` is loopback and
            nothing need be shown.

    Raises:
        ValueError: the host is not loopback, and there is no token.
    """

    def __init__(self, host: str, token: str | None = None) -> None:
        if token is None and not is_loopback(host):
            raise ValueError(f"a control API at {host}, which is not loopback, needs a token")
        self._token = None if token is None else token.encode()

    @property
    def needs_token(self) -> bool:
        """Whether a token has to be shown."""
        return self._token is not None

    def check(self, request: Request) -> None:
        """Let a request in.

        Raises:
            Failure: it is not let in, 401 or 403.
        """
        if self._token is None:
            self._check_host(request)
            return
        shown = request.headers.get(b"authorization", b"")
        scheme, token = shown[: len(SCHEME)].lower(), shown[len(SCHEME) :].strip()
        if scheme != SCHEME or not hmac.compare_digest(token, self._token):
            message = "the control API needs 'Authorization: Bearer TOKEN', with the token that it was started with"
            raise Failure(401, message, ((b"www-authenticate", b"Bearer"),))

    def check_page(self, request: Request) -> None:
        """Let a request for a page in: where a token has to be shown, as the password that a browser asks for.

        What a browser has been told once it shows unasked, for pages of other sites too; so it is no way into the
        control API, and what comes from pages of other sites is turned away.

        Raises:
            Failure: it is not let in, 401 or 403.
        """
        if self._token is None:
            self._check_host(request)
            return
        password = _password(request.headers.get(b"authorization", b""))
        if password is None or not hmac.compare_digest(password, self._token):
            message = "the dashboard needs the token that the control API was started with as password, and any name"
            raise Failure(401, message, ((b"www-authenticate", b'Basic realm="cpsim", charset="UTF-8"'),))
        self._check_origin(request)

    def _check_host(self, request: Request) -> None:
        host = request.headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        if not is_loopback(name):
            raise Failure(403, f"the Host {host!r} is not a name of this machine; use 127.0.0.1 or localhost")
        self._check_origin(request)

    def _check_origin(self, request: Request) -> None:
        host = request.headers.get(b"host", b"").decode("latin-1")
        origin = request.headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2].lower() != host.lower():
            raise Failure(403, f"pages of {origin!r} may not use the control API")


def _password(shown: bytes) -> bytes | None:
    """The password of HTTP's Basic authentication; None, if that is not it."""
    if shown[: len(BASIC)].lower() != BASIC:
        return None
    try:
        return b64decode(shown[len(BASIC) :].strip(), validate=True).partition(b":")[2]
    except ValueError:
        return None
