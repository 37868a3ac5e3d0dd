"""The fake: a site's daemons and the account server behind them, in one process.

No other package imports both tiers.
"""

from cpsim.fake.daemons import Site
from cpsim.fake.fake import ANY_PORT, Fake
from cpsim.fake.process import FakeProcess

__all__ = ["ANY_PORT", "Fake", "FakeProcess", "Site"]
