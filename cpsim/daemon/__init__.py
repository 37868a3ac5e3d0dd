"""The site's tier: accepts commands on sockets, acknowledges them, and delivers them in order."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # in a fake, the caller decides what is shown
