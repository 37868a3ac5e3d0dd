"""The site's tier: takes commands on sockets, acknowledges them, and passes them on in order."""

import logging

logging.getLogger(__name__).addHandler(
    logging.NullHandler()
)  # within a fake, it is for the caller to show what is logged
