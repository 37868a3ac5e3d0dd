"""What axe finds wrong with a page, for people who see, hear or move in other ways than most."""

from selenium_axe_python import Axe


def barriers(browser):
    """A line for each place of the page in a browser that breaks a rule of axe."""
    browser.set_script_timeout(300)
    axe = Axe(browser)
    axe.inject()
    return [
        f"{broken['id']}: {place['html']}: {place['failureSummary']}"
        for broken in axe.run()["violations"]
        for place in broken["nodes"]
    ]
