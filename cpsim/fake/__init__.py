"""The fake: a site's daemons and the account server behind them, in one process.

It is the only place where the two tiers meet.
"""

from cpsim.fake.daemons import Site
from cpsim.fake.fake import ANY_PORT, Fake
from cpsim.fake.process import FakeProcess

__all__ = ["ANY_PORT", "Fake", "FakeProcess", "Site"]
