"""The dashboard as a browser shows it."""

import base64
import json

import pytest
from axe import barriers
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from cpdaemon import TcpEndpoint
from cpsim.testing import ManualClock

from .conftest import EVIL


@pytest.fixture
def shown(browser, visitor):
    """Return shown(page, width, dark=) -> the browser, with that page in it."""

    def show(page="", width=1400, *, dark=False):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": [scheme]})
        browser.get(f"{visitor.address}/{page}")
        return browser

    return show


def ask(browser, script, *arguments):
    return browser.execute_script(f"return {script}", *arguments)


PAGES = ["", "slots", "machines", "users", "slot?id=job-1", "machine?id=worker-3", "user?id=user-0", "search?q=job-1"]


@pytest.mark.parametrize("page", PAGES)
def test_the_console_is_silent_and_only_this_server_is_asked(shown, visitor, page):
    browser = shown(page)
    browser.get_log("browser")
    browser.get_log("performance")
    shown(page)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    fetched = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith((f"{visitor.address}/", "data:")) for url in fetched)
    assert f"{visitor.address}/dashboard.js" in fetched


def test_figures_follow_what_happens(shown, visitor, wait_for):
    browser = shown()
    tile = "document.querySelector('#tiles li b').textContent"
    before = ask(browser, tile)
    calls = [("alloc", {"slot": "new", "credits": 5_000}), ("claim", {"slot": "new", "machine": "m"})]
    visitor.fake.accounts.apply("physics", calls)
    wait_for(lambda: ask(browser, tile) != before)
    assert ask(browser, "document.getElementById('news').textContent") == ""


CHARTS = "document.querySelectorAll('#charts figure canvas').length"
ROWS = "document.querySelectorAll('#charts tbody')[0].rows.length"


def test_charts_come_and_follow_what_happens_without_a_new_page(browser, start, wait_for):
    clock = ManualClock()
    visitor = start(clock=clock)
    browser.get(visitor.address)
    assert ask(browser, CHARTS) == 0

    def passes(script, least):
        def pass_a_second():
            visitor.fake.accounts.apply("physics", [("claim", {"slot": "none", "machine": "m"})])
            clock.advance(1)
            return ask(browser, script) >= least

        return pass_a_second

    wait_for(passes(CHARTS, 4))
    ask(browser, "document.querySelector('#charts details').open = true")
    rows = ask(browser, ROWS)
    wait_for(passes(ROWS, rows + 2))
    assert ask(browser, CHARTS) == 4
    assert ask(browser, "document.querySelector('#charts details').open")
    ask(browser, "document.querySelector('#charts .plot').focus()")
    ActionChains(browser).send_keys(Keys.END).perform()
    tip = ask(browser, "document.getElementById('tip').textContent").splitlines()
    assert tip[0].endswith(" UTC")
    assert tip[-1].startswith("claim ")
    assert barriers(browser) == []
    ask(browser, "document.querySelector('.theme')").click()
    assert ask(browser, CHARTS) == 4
    assert browser.get_log("browser") == []


def test_a_fault_is_chosen_from_a_list(shown, visitor, wait_for):
    browser = shown()

    def field(name):
        return ask(browser, f"document.querySelector('form.fault').elements['{name}']")

    def choose(name):
        script = "const [at, to] = arguments; at.value = to; at.dispatchEvent(new Event('change'))"
        browser.execute_script(script, field("action"), name)

    assert not field("value").is_enabled()
    choose("daemon.refuse")
    assert not field("kind").is_enabled()
    choose("server.status")
    assert ask(browser, "document.getElementById('value-is').textContent") == "HTTP status"
    assert field("kind").is_enabled()
    field("value").send_keys("503")
    field("slot").send_keys("job-*", Keys.ENTER)
    wait_for(lambda: [str(fault) for fault in visitor.fake.faults] == ["server.status=503:slot=job-*"])


def test_a_pause_holds_them_and_is_said(shown, visitor, wait_for):
    browser = shown()
    button = ask(browser, "document.querySelector('.pause')")
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-pressed") == "true"
    assert "Paused" in ask(browser, "document.querySelector('[role=status]').textContent")
    button.send_keys(Keys.SPACE)
    tile = "document.querySelector('#tiles li:last-child b').textContent"
    before = ask(browser, tile)
    visitor.fake.accounts.apply("physics", [("claim", {"slot": "none", "machine": "m"})])
    wait_for(lambda: ask(browser, tile) != before)


def test_a_server_that_is_gone_is_said_to_be(shown, visitor, wait_for):
    browser = shown()
    visitor.leave()
    wait_for(lambda: "does not answer" in ask(browser, "document.getElementById('news').textContent"))
    browser.get_log("browser")


def test_all_of_it_can_be_done_with_the_keyboard(shown, visitor, wait_for):
    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def focused():
        return ask(browser, "document.activeElement.textContent.trim() || document.activeElement.id")

    browser = shown()
    press(Keys.TAB)
    assert focused() == "Skip to the content"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert ask(browser, outline) != "none"
    reached = []
    for _ in range(60):
        press(Keys.TAB)
        reached.append(focused())
        if reached[-1] == "Freeze":
            break
    assert "q" in reached
    press(Keys.ENTER)
    wait_for(lambda: visitor.fake.accounts.clock.rate == 0)
    wait_for(lambda: "The clock is frozen." in ask(browser, "document.body.textContent"))
    ask(browser, "document.getElementById('q').focus()")
    press("job-199", Keys.ENTER)
    wait_for(lambda: browser.title == "Slot job-199 \N{EN DASH} cpsim")


def test_a_reset_wants_to_be_confirmed(shown, visitor, wait_for):
    browser = shown()
    button = ask(browser, "document.querySelector('form[action=\"/do/reset\"] button')")
    button.send_keys(Keys.ENTER)
    assert ask(browser, "document.querySelector('form[action=\"/do/reset\"]').checkValidity()") is False
    assert visitor.fake.inspector.totals().projects["physics"].allocated == 201
    ask(browser, "document.querySelector('.sure input')").send_keys(Keys.SPACE)
    button.send_keys(Keys.ENTER)
    wait_for(lambda: not visitor.fake.inspector.totals().projects["physics"].allocated)
    wait_for(lambda: "The reset is done." in ask(browser, "document.body.textContent"))


@pytest.mark.parametrize("page", PAGES)
def test_everything_has_a_name_for_those_who_hear_it(shown, page):
    browser = shown(page)
    nameless = ask(
        browser,
        "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, [role=region], "
        "svg:not([aria-hidden])')]"
        ".filter(each => !(each.labels && each.labels.length) && !each.getAttribute('aria-label') && "
        "!each.textContent.trim()).map(each => each.outerHTML)",
    )
    assert nameless == []
    assert ask(browser, "document.querySelectorAll('h1').length") == 1
    assert ask(browser, "document.documentElement.lang") == "en"
    assert ask(browser, "[...document.querySelectorAll('table')].every(table => table.caption && table.tHead)")
    ids = ask(browser, "[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (colour) => colour.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (each) => { for (; each; each = each.parentElement) {
    const colour = rgb(getComputedStyle(each).backgroundColor); if (colour.length == 3) return colour; } };
  return [...document.querySelectorAll('body *')].filter(each => each.checkVisibility() && [...each.childNodes].some(
    node => node.nodeType == 3 && node.data.trim()) && !each.closest('svg')).map(each => {
    const pair = [light(rgb(getComputedStyle(each).color)), light(ground(each))].sort((a, b) => b - a);
    return [each.textContent.trim().slice(0, 40), (pair[0] + .05) / (pair[1] + .05)]; })
    .filter(([, ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("page", ["slots", "slot?id=job-1", "users"])
def test_axe_finds_no_barrier(shown, page):
    assert barriers(shown(page, dark=page == "slots")) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("page", ["", "slots", "slot?id=job-1", "slot?id=nobody"])
def test_text_stands_out_in_light_and_dark(shown, page, dark):
    assert ask(shown(page, dark=dark), CONTRAST) == []


def test_the_theme_can_be_changed_and_stays(shown):
    def colours(browser):
        return ask(browser, "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")

    light, dark = colours(shown()), colours(shown(dark=True))
    assert light != dark
    browser = shown()
    ask(browser, "document.querySelector('.theme')").click()
    assert colours(browser) == dark
    assert colours(shown("slots")) == dark
    ask(browser, "document.querySelector('.theme')").click()
    assert colours(browser) == light


@pytest.mark.parametrize("width", [1400, 800, 400])
@pytest.mark.parametrize("page", PAGES)
def test_the_page_fits_its_window(shown, page, width):
    assert ask(shown(page, width), "document.documentElement.scrollWidth") <= width


def test_names_are_text(shown):
    for page in ("", "slots", "machines", "users"):
        browser = shown(page)
        assert ask(browser, "document.querySelectorAll('img').length") == 0
        assert "caught" not in browser.title
        assert EVIL in ask(browser, "document.body.textContent")


def test_a_browser_shows_the_token_as_a_password(browser, start, wait_for):
    visitor = start(http=TcpEndpoint("127.0.0.1", 0), control_token="t0ken")
    browser.get(visitor.address.replace("//", "//anybody:t0ken@"))
    assert ask(browser, "document.querySelector('h1').textContent") == "Overview"
    browser.get(visitor.address)
    button = ask(browser, "document.querySelector('form[action=\"/do/clock/freeze\"] button')")
    button.click()
    wait_for(lambda: visitor.fake.accounts.clock.rate == 0)


@pytest.mark.parametrize(
    ("name", "page", "width", "dark"),
    [
        ("overview-light", "", 1400, False),
        ("overview-dark", "", 1400, True),
        ("overview-narrow", "", 400, False),
        ("slots-dark", "slots", 1400, True),
        ("slot-narrow", "slot?id=job-1", 400, True),
    ],
)
def test_pictures_are_kept(shown, request, name, page, width, dark):
    """In `.artefacts/`, for somebody to look at."""
    browser = shown(page, width, dark=dark)
    height = min(4_000, ask(browser, "document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    folder = request.config.rootpath / ".artefacts"
    folder.mkdir(exist_ok=True)
    picture = folder / f"dashboard-{name}.png"
    picture.write_bytes(base64.b64decode(taken["data"]))
    assert picture.stat().st_size > 10_000
