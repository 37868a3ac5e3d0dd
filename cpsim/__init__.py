"""Test harness and simulator for CreditPiggy.

A **scenario** says what should happen, a **workload** makes it exact, a **replay** makes it happen at an **endpoint**,
a **journal** records what was answered, **verify** says whether it was right, and a **report** says who earned what::

    scenarios/*.toml -> cpsim.scenario -> cpsim.replay -> an endpoint: somebody's, or ours,
                                              |           cpsim.daemon -> cpsim.server
                                              v                               |
                                           journal ------> cpsim.judge <-----+
                                                                |
                                                                v
                                                         verdict, run folder
"""
