"""What goes wrong for reasons the user can mend: shown as one message, without a traceback."""


class Problem(Exception):  # noqa: N818 - the name is the point
    """Something the user can mend; the message names the thing, what is wrong with it, and what to do."""


class WrongUsage(Problem):
    """A wish that is not said as it has to be, or that nothing could grant; on the command line, exit status 64."""
