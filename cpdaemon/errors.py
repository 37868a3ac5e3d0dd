"""What can go wrong, and whether the command may have been applied all the same.

CreditPiggyError
├── InvalidCommand     ValueError         definite   the protocol cannot represent this command
├── EndpointError      ValueError         definite   an address or credentials that cannot be used
├── NotSent            ConnectionError    definite   not one byte of the command was sent
│   └── ConnectFailed                     definite   nobody answers at this address, or not securely
│       ├── NoSuchSocket    FileNotFoundError
│       └── ConnectTimeout  TimeoutError
├── Refused                               definite   the daemon answered ER, the server an error
├── ReplyLost          ConnectionError    unknown    sent; the reply never came, or was cut short
│   └── ReplyTimeout        TimeoutError
└── BadReply                              unknown    sent; the reply is none the protocol knows

*Definite* errors leave nothing behind: the command had no effect and may be sent again. After any other
error it may have been applied, and sending it again may apply it twice. Errors of the operating system keep
its `errno`.
"""


class CreditPiggyError(Exception):
    """Any failure to get a command accepted.

    Attributes:
        definite: True if the command certainly had no effect, False if it may have been applied.
    """

    definite: bool = True


class InvalidCommand(CreditPiggyError, ValueError):
    """A command that the protocol cannot represent; raised where it is made, before anything is sent."""


class EndpointError(CreditPiggyError, ValueError):
    """An address, or credentials for it, that cannot be used."""


class NotSent(CreditPiggyError, ConnectionError):
    """Not one byte of the command was sent."""


class ConnectFailed(NotSent):
    """No connection could be made to the endpoint."""


class NoSuchSocket(ConnectFailed, FileNotFoundError):
    """There is no UNIX socket at this path."""


class ConnectTimeout(ConnectFailed, TimeoutError):
    """Time was up before any byte of the command was sent."""


class Refused(CreditPiggyError):
    """The daemon or the server said no.

    Attributes:
        status: HTTP status that came with it; None from a daemon.
    """

    status: int | None = None

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ReplyLost(CreditPiggyError, ConnectionError):
    """The command was sent, at least in part, and the connection ended before a whole reply had come."""

    definite = False


class ReplyTimeout(ReplyLost, TimeoutError):
    """The command was sent, at least in part, and time was up before a whole reply had come."""


class BadReply(CreditPiggyError):
    """The reply is not one that the protocol knows, or does not say what became of the command.

    Attributes:
        unnamed: of a bulk's commands, how many were refused without being named.
    """

    definite = False

    def __init__(self, message: str, unnamed: int = 0) -> None:
        super().__init__(message)
        self.unnamed = unnamed
