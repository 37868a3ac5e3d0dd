"""CreditPiggy for tests: with pytest through the fixtures of `cpsim.pytest_plugin`, and without it through these."""

from cpsim.testing.clock import ManualClock
from cpsim.testing.creditpiggy import AsyncCreditPiggy, CreditPiggy, CreditPiggyServer
from cpsim.testing.waiting import NotInTime

__all__ = ["AsyncCreditPiggy", "CreditPiggy", "CreditPiggyServer", "ManualClock", "NotInTime"]
