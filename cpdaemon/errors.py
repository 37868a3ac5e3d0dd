"""Errors, and whether the command may have been applied nevertheless.

CreditPiggyError
├── InvalidCommand     ValueError         definite   the protocol cannot represent this command
├── EndpointError      ValueError         definite   an address or credentials that cannot be used
├── NotSent            ConnectionError    definite   no byte of the command was sent
│   └── ConnectFailed                     definite   no connection to this address, or no secure one
│       ├── NoSuchSocket    FileNotFoundError
│       └── ConnectTimeout  TimeoutError
├── Refused                               definite   the daemon answered ER, the server an error
├── ReplyLost          ConnectionError    unknown    sent; the reply was lost or cut short
│   └── ReplyTimeout        TimeoutError
└── BadReply                              unknown    sent; the reply is malformed

After a *definite* error the command had no effect and may be sent again. After any other error it may have been
applied, and sending it again may apply it twice. Errors of the operating system keep its `errno`.
"""


class CreditPiggyError(Exception):
    """Any failure to get a command accepted.

    Attributes:
        definite: True if the command certainly had no effect, False if it may have been applied.
        answered: whether an answer came with it, even in part: of HTTP, at least its status.
    """

    definite: bool = True
    answered: bool = False


class InvalidCommand(CreditPiggyError, ValueError):
    """A command that the protocol cannot represent; raised by its constructor, before anything is sent.

    Attributes:
        reason: the message without the value, which may be another for each command.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class EndpointError(CreditPiggyError, ValueError):
    """An address, or credentials for it, that cannot be used."""


class NotSent(CreditPiggyError, ConnectionError):
    """No byte of the command was sent."""


class ConnectFailed(NotSent):
    """No connection could be made to the endpoint."""


class NoSuchSocket(ConnectFailed, FileNotFoundError):
    """There is no UNIX socket at this path."""


class ConnectTimeout(ConnectFailed, TimeoutError):
    """The timeout passed before any byte of the command was sent."""


class Refused(CreditPiggyError):
    """The daemon or the server refused the command.

    Attributes:
        status: HTTP status of the reply; None from a daemon.
    """

    status: int | None = None
    answered = True

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ReplyLost(CreditPiggyError, ConnectionError):
    """The command was sent, at least in part, and the connection ended before the reply was complete."""

    definite = False


class ReplyTimeout(ReplyLost, TimeoutError):
    """The command was sent, at least in part, and the timeout passed before the reply was complete."""


class BadReply(CreditPiggyError):
    """The reply is malformed, or does not name the command's outcome.

    Attributes:
        unnamed: number of a bulk's commands that were refused without being named.
    """

    definite = False
    answered = True

    def __init__(self, message: str, unnamed: int = 0) -> None:
        super().__init__(message)
        self.unnamed = unnamed
