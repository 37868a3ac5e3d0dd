"""An event loop by a clock."""

import asyncio


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is that of a clock."""

    def __init__(self, clock):
        self.time = clock.monotonic
        super().__init__()
