"""Access to the control API.

With a token, every client that sends it has access. Without one, every client on this machine has, except for pages of
other sites in its browsers: their requests name the site in `Origin`, or in `Host` if it resolves to this machine.
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
    """Accepts or rejects requests.

    Args:
        host: where the server listens.
        token: required in every request, as `Authorization: Bearer TOKEN`; None, with a loopback `host`, for no token.

    Raises:
        ValueError: the host is not loopback, and there is no token.
    """

    def __init__(self, host: str, token: str | None = None) -> None:
        if token is None and not is_loopback(host):
            raise ValueError(f"a control API at {host}, which is not loopback, needs a token")
        self._token = None if token is None else token.encode()

    def set_token(self, token: str) -> None:
        """Require another token in further requests."""
        self._token = token.encode()

    @property
    def needs_token(self) -> bool:
        """Whether requests need a token."""
        return self._token is not None

    def check(self, request: Request) -> None:
        """Check a request.

        Raises:
            Failure: 401 or 403, if the request is rejected.
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
        """Check a request for a page; the token is the password that a browser asks for.

        A browser sends a stored password with requests of other sites' pages too. So a password gives no access to the
        control API, and requests of other sites' pages are rejected.

        Raises:
            Failure: 401 or 403, if the request is rejected.
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
    """The password of HTTP Basic authentication; None for another scheme."""
    if shown[: len(BASIC)].lower() != BASIC:
        return None
    try:
        return b64decode(shown[len(BASIC) :].strip(), validate=True).partition(b":")[2]
    except ValueError:
        return None
