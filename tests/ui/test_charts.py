"""Charts of pages: what is in the file, and what a browser shows and does."""

import json
import re
from hashlib import sha256
from importlib.resources import files

import pytest

from cpsim.ui.charts import UNKNOWN, Band, Chart, Ranking, Series
from cpsim.ui.pages import template

LIBRARY = {
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
"""The SHA-256 of each file of uPlot 1.6.32; cpsim/ui/vendor/README.md says how a new release comes in."""
EVIL = "</script><img src=x onerror=\"document.title='caught'\">"


def chart(**changes):
    made = {
        "title": "Operations per second",
        "across": "seconds",
        "x_name": "second",
        "x": [0, 1, 2, 3],
        "series": [Series("offered", [10, 20, 30, 40]), Series(EVIL, [9, None, 1_500, 0.25], 1)],
        "bands": [Band(1, 2, "server.status=503", "bad")],
        "group": "run",
    }
    return Chart(**{**made, **changes})


def test_the_library_is_carried_along_unmodified_with_its_licence():
    folder = files("cpsim.ui").joinpath("vendor/uplot")
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == LIBRARY
    assert "(v1.6.32)" in folder.joinpath("uPlot.iife.min.js").read_text(encoding="utf-8")[:60]


def test_a_chart_comes_with_its_data_and_a_table_of_them():
    text = str(chart().__html__())
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert data["x"] == [0, 1, 2, 3]
    assert [series["values"] for series in data["series"]] == [[10, 20, 30, 40], [9, None, 1500, 0.25]]
    assert data["series"][1]["name"] == EVIL
    assert EVIL not in text
    assert "<img" not in text
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows[1:] == [["0", "10", "9"], ["1", "20", "\N{EN DASH}"], ["2", "30", "1,500"], ["3", "40", "0.2500"]]
    assert "<table" not in chart(has_table=False).__html__()


def test_a_ranking_needs_no_script():
    text = str(Ranking("Ends", ["claimed", "lost"], [("p", [3, 1]), (EVIL, [None, 2])], "{:,}".format).__html__())
    assert re.findall(r"width:([\d.]+)%", text) == ["75.00", "25.00", "0.00", "50.00"]
    assert re.findall(r"<b>(.*?)</b>", text) == ["4", "2"]
    assert 'title="p: claimed 3, lost 1"' in text
    assert "<img" not in text


@pytest.fixture
def shown(browser, tmp_path):
    """Return shown(*charts, media=) -> the browser, with the charts on a page."""
    layout = template("cpsim.accounting", "page.html.j2").environment
    content = "<h1>Page</h1>{% for each in charts %}{{ each }}{% endfor %}"
    page = layout.from_string("{% extends 'layout.html.j2' %}{% block content %}" + content + "{% endblock %}")

    def show(*charts, media="screen", width=1400):
        path = tmp_path / "page.html"
        path.write_text(page.render(title="Page", contents="Page", sections=[], charts=charts), encoding="utf-8")
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    return show


def tip(browser):
    return browser.execute_script(
        "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent"
    )


def test_the_keyboard_reads_values_and_zooms_all_charts_of_a_group(shown):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = shown(chart(), chart(title="Errors"), chart(title="Alone", group=""))

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    browser.execute_script("document.querySelector('.plot').focus()")
    press(Keys.END)
    assert tip(browser) == f"second 3 s\noffered 40\n{EVIL} 0.25"
    press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert tip(browser) == f"second 1 s\noffered 20\n{EVIL} {UNKNOWN}\nserver.status=503"
    hidden = "return [...document.querySelectorAll('.reset')].map(reset => reset.hidden)"
    assert browser.execute_script(hidden) == [True, True, True]
    press("+")
    assert browser.execute_script(hidden) == [False, False, True]
    press(Keys.ESCAPE)
    assert browser.execute_script(hidden) == [True, True, True]
    assert browser.get_log("browser") == []
    assert "caught" not in browser.title


def test_a_drag_zooms_and_a_press_shows_all_again(shown):
    from selenium.webdriver import ActionChains

    browser = shown(chart(x=list(range(100)), series=[Series("one", list(range(100))), Series("two", [5] * 100, 1)]))
    over = browser.execute_script("return document.querySelector('.u-over')")
    ActionChains(browser).move_to_element_with_offset(over, -200, 0).click_and_hold().move_by_offset(
        300, 0
    ).release().perform()
    reset = browser.execute_script("return document.querySelector('.reset')")
    assert reset.is_displayed()
    reset.click()
    assert not reset.is_displayed()
    first = browser.execute_script("return document.querySelector('.legend button')")
    first.click()
    assert first.get_attribute("aria-pressed") == "false"


DRAWN = (
    "return [...document.querySelectorAll('canvas')].map(canvas => { const at = "
    "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; const found = {}; "
    "for (let i = 0; i < at.length; i += 4) if (at[i + 3] == 255) { const name = `${at[i]},${at[i + 1]},${at[i + 2]}`; "
    "found[name] = (found[name] || 0) + 1 } return [canvas.getBoundingClientRect().width, found] })"
)
BLUE, ORANGE = "47,111,220", "217,130,43"


@pytest.mark.parametrize("drawn", ["line", "area", "bars", "steps"])
def test_each_way_of_drawing_draws_each_series(shown, drawn):
    charts = [
        chart(drawn=drawn, group=""),
        chart(drawn=drawn, group="", across="names", x=["a", "b", "c", EVIL]),
        chart(
            drawn=drawn, group="", across="time", x=[1.7e9 + 60 * minute for minute in range(4)], zone="Europe/Zurich"
        ),
        chart(drawn=drawn, group="", across="percentile", x=[1, 10, 100, 1000], is_log=drawn != "bars", bands=()),
    ]
    browser = shown(*charts)
    found = browser.execute_script(DRAWN)
    assert len(found) == len(charts)
    for _, colours in found:
        assert colours.get(ORANGE, 0) > 20
    assert browser.get_log("browser") == []


def test_print_draws_anew_for_paper(shown, wait_for):
    browser = shown(chart(), width=1400)
    on_screen = browser.execute_script(DRAWN)
    assert on_screen[0][0] > 1000
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    wait_for(lambda: browser.execute_script(DRAWN)[0][0] <= 680)
    on_paper = browser.execute_script(DRAWN)
    assert on_paper[0][0] > 300
    assert on_paper[0][1].get(ORANGE, 0) > 20
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": []})


def test_one_place_is_a_chart_too(shown):
    browser = shown(chart(x=[5], series=[Series("one", [7])]), chart(x=[5], series=[Series("one", [7])], drawn="bars"))
    assert all(colours.get(BLUE) for _, colours in browser.execute_script(DRAWN))
    assert browser.get_log("browser") == []
