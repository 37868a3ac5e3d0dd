"""The HTML file, as text and as a browser shows it."""

import base64
import json
import re

import pytest
from axe import barriers

from cpsim.accounting import Accounts, Figure, Report, build, page

EVIL = "<img src=x onerror=\"document.title='caught'\">"
LARGEST_BYTES = 1_500_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Four weeks of a site with a few machines, one of which has a name that would like to be run."""
    from .conftest import Site

    site = Site(tmp_path_factory.mktemp("site") / "export", projects=("p",))
    machines = ["alpha", "beta", "gamma", EVIL, "a-machine-with-a-name-that-goes-on-and-on.example.org"]
    site.server.link([(machine, f"user of {machine}") for machine in machines[:4]])
    for number in range(200):
        site.at(number / 7).alloc(f"job-{number}", min=1, max=20)
        site.count(f"job-{number}", **{"job/cpuusage": 60 * (1 + number % 50), "job/success": 1})
        site.at((number + 0.5 + number % 3 / 10) / 7)
        if number % 9 == 0:
            site.apply(("discard", {"slot": f"job-{number}", "reason": "lost"}))
        elif number % 19:
            site.claim(f"job-{number}", machines[(number + number // 5) % 5], credits=1 + number % 30)
    return site


@pytest.fixture(scope="module")
def text(site):
    with site.load(timezone="Europe/Zurich") as accounts:
        return page.html(accounts, build(accounts))


def test_it_is_one_file_that_fetches_nothing(text):
    assert len(text.encode()) < LARGEST_BYTES
    assert not re.findall(r"<(?:script|img|iframe|audio|video|object|embed)[^>]*\ssrc=", text.replace(EVIL, ""))
    assert {link for link in re.findall(r'href="([^"]*)"', text) if not link.startswith("#")} == {"data:,"}
    assert "url(" not in text
    assert "@import" not in text
    assert EVIL not in text


def test_the_page_begins_with_whether_the_books_balance(text):
    assert len(re.findall(r"<section.*?</section>", text, re.DOTALL)) > 10
    assert len(re.findall(r"The books balance: \d+ conservation laws hold\.", text)) == 1
    assert text.index("The books balance") < text.index("<section")


def test_books_that_do_not_balance_say_so_at_the_top(make_site):
    site = make_site("reclaim")
    site.alloc("a", credits=5)
    site.claim("a", "m")
    site.claim("a", "n")
    with site.load() as accounts:
        text = page.html(accounts, build(accounts, ["summary", "leaderboards"]))
    top, _, reports = text.partition("<section")
    assert top.count("The books do not balance: 2 of 3 conservation laws are broken.") == 1
    assert top.count("Broken conservation laws</h3>") == 1
    assert "conservation laws" not in reports


def test_an_empty_ledger_is_said_to_be_empty(make_site):
    with make_site().load() as accounts:
        text = page.html(accounts, build(accounts))
    assert "The ledger is empty" in text
    assert "<p>There is nothing to balance. There are no reports either.</p>" in text
    assert text.count("<table") == text.count("<section") == 0
    assert "At no known time" in text
    assert "1970" not in text


@pytest.mark.thorough
def test_a_large_ledger_makes_no_large_page(tmp_path):
    """A page shows so many rows of a table, however many there are."""
    from .conftest import Site

    site = Site(tmp_path / "export", projects=tuple(f"project-{n}" for n in range(8)))
    for number in range(4_000):
        project = f"project-{number % 8}"
        site.at(number / 20).alloc(f"a-slot-with-a-long-name-{number}", project=project, credits=number)
        site.claim(f"a-slot-with-a-long-name-{number}", f"a-machine-with-a-long-name-{number % 50}", project=project)
    with Accounts.load(site.export(), top=20) as accounts:
        text = page.html(accounts, build(accounts))
    assert "rows; the CSV and Parquet formats have all" in text
    assert len(text.encode()) < LARGEST_BYTES


@pytest.mark.thorough
def test_a_page_is_bounded_and_says_what_it_leaves_out(tmp_path):
    """However many statements are asked for, and however long names are."""
    from .conftest import Site

    site = Site(tmp_path / "export", projects=("p",))
    names = [f"{number}-{'&' * 900}" for number in range(90)]
    site.server.link([(f"machine {name}", f"user {name}") for name in names])
    for name in names:
        site.alloc(f"slot {name}", credits=5)
        site.claim(f"slot {name}", f"machine {name}")
    with site.at(1).load(top=1000) as accounts:
        text = page.html(accounts, build(accounts))
    assert len(text.encode()) < LARGEST_BYTES
    for kind in ("machine", "user"):
        assert f"{kind} 0-" + "&amp;" * 50 in text
    assert re.search(r"\d+ more tables of this report have no room on this page: the CSV and Parquet", text)
    assert re.search(r"The first \d+ of 90; the CSV and Parquet formats have all", text)


def test_a_user_without_credits_in_the_period_is_said_to_have_none(site):
    with site.load(since="2026-01-30", until="2026-02-01") as accounts:
        text = page.html(accounts, build(accounts, ["users"]))
    assert text.count("Nothing in this period.") > 0
    assert "has no room" not in text


def test_the_times_of_a_column_tell_as_much_as_one_another(site):
    with site.load() as accounts:
        text = page.html(accounts, build(accounts, ["credit-over-time"]))
    days, hours = (text.partition(f">By {name}</h3>")[2].partition("</details>")[0] for name in ("day", "hour"))
    assert set(map(len, re.findall(r'class="time"[^>]*>([\d :-]+)</td>', days))) == {len("2026-01-01")}
    assert set(map(len, re.findall(r'class="time"[^>]*>([\d :-]+)</td>', hours))) == {len("2026-01-01 00:00:00")}


@pytest.fixture
def shown(browser, text, tmp_path):
    """Return shown(width, dark=, media=) -> the browser, with the page in it."""
    path = tmp_path / "credit.html"
    path.write_text(text, encoding="utf-8")

    def show(width=1400, *, dark=False, media="screen"):
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        browser.get(path.as_uri())
        return browser

    return show


def ask(browser, script, *arguments):
    return browser.execute_script(f"return {script}", *arguments)


def test_the_console_is_silent_and_nothing_is_fetched(shown):
    browser = shown()
    browser.get_log("performance")
    browser = shown()
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    fetched = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url.partition(":")[0] for url in fetched} <= {"file", "data"}
    assert len([url for url in fetched if url.startswith("file")]) == 1
    assert browser.title == "Credit of p"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nobody_meets_a_barrier(shown, dark):
    browser = shown(dark=dark)
    for many in ask(browser, "[...document.querySelectorAll('tbody')]"):  # axe takes minutes for thousands of cells
        browser.execute_script("[...arguments[0].rows].slice(3).forEach(row => row.remove())", many)
    assert barriers(browser) == []


def test_every_figure_is_drawn(shown, site):
    browser = shown()
    with site.load() as accounts:
        blocks = [block for report in build(accounts) for block in report.blocks]
    figures = [block for block in blocks if isinstance(block, Figure) and not block.within]
    charts = ask(
        browser,
        "[...document.querySelectorAll('figure.chart, figure.ranked')].map(figure => { const canvas = "
        "figure.querySelector('canvas'); const box = figure.getBoundingClientRect(); const marks = canvas ? "
        "[...new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)]"
        ".filter(at => at >>> 24 == 255 && Math.max(at & 255, at >> 8 & 255, at >> 16 & 255) - "
        "Math.min(at & 255, at >> 8 & 255, at >> 16 & 255) > 60).length : [...figure.querySelectorAll('.bar i')]"
        ".filter(bar => bar.getBoundingClientRect().width).length; "
        "return [box.width, box.height, marks, figure.querySelector('figcaption').textContent] })",
    )
    assert [title for *_, title in charts] == [figure.title for figure in figures]
    assert len(charts) > 8
    for width, height, marks, title in charts:
        assert width > 200, title
        assert height > 20, title
        assert marks > 0, title


def test_each_chart_has_its_table_beside_it(shown):
    browser = shown()
    assert ask(browser, "document.querySelectorAll('.both').length == document.querySelectorAll('.both figure').length")
    assert ask(browser, "[...document.querySelectorAll('.both')].every(both => both.querySelector('tbody tr'))")


def test_a_table_sorts_by_the_column_that_is_pressed(shown):
    browser = shown()
    table = ask(
        browser,
        "[...document.querySelectorAll('#leaderboards table')]"
        ".find(table => table.caption.textContent == 'Leading machines')",
    )

    def column(name):
        return ask(
            browser,
            "(() => { const heads = [...arguments[0].tHead.rows[0].cells]; const at = heads.findIndex(head => "
            "head.textContent == arguments[1]); return [[...arguments[0].tBodies[0].rows].map(row => "
            "row.cells[at].textContent), heads[at].getAttribute('aria-sort')] })()",
            table,
            name,
        )

    def press(name):
        script = "[...arguments[0].querySelectorAll('th button')].find(button => button.textContent == arguments[1])"
        button = ask(browser, script, table, name)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
        button.click()

    before, _ = column("Credits")
    assert len(before) == 5
    for name, key in (("Credits", lambda text: int(text.replace(",", ""))), ("Machine", str)):
        for _ in range(2):
            press(name)
            values, direction = column(name)
            assert direction in {"ascending", "descending"}
            assert values == sorted(values, key=key, reverse=direction == "descending")
    assert sorted(column("Credits")[0]) == sorted(before)
    assert column("Credits")[1] == "none"


def test_a_pointer_over_a_chart_shows_its_figures(shown):
    from selenium.webdriver import ActionChains

    browser = shown()
    target = ask(browser, "document.querySelector('#credit-over-time .u-over')")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", target)
    ActionChains(browser).move_to_element(target).perform()
    tip = ask(browser, "[document.getElementById('tip').hidden, document.getElementById('tip').textContent]")
    assert tip[0] is False
    assert re.fullmatch(r"Start 20\d\d-\d\d-\d\d \d+:\d\d:\d\d .+\nCumulative credits [\d,]+", tip[1])
    titles = ask(browser, "[...document.querySelectorAll('#leaderboards .ranking li')].map(bar => bar.title)")
    assert all(re.fullmatch(r".+: Credits [\d,]+", title) for title in titles)
    assert titles


def test_names_are_text(shown):
    browser = shown()
    assert ask(browser, "document.querySelectorAll('img').length") == 0
    assert "caught" not in browser.title
    assert EVIL in ask(browser, "document.querySelector('#leaderboards').textContent")


def test_light_and_dark(shown):
    def colours(browser):
        return ask(browser, "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")

    light, dark = colours(shown()), colours(shown(dark=True))
    assert light != dark
    browser = shown()
    ask(browser, "document.querySelector('.theme')").click()
    assert colours(browser) == dark
    ask(browser, "document.querySelector('.theme')").click()
    assert colours(browser) == light


def test_leaderboards_show_all_columns(shown):
    browser = shown(1400)
    tables = ask(
        browser,
        "[...document.querySelectorAll('#leaderboards .table')].map(table => [table.scrollWidth, table.clientWidth, "
        "[...table.querySelectorAll('th')].map(head => head.textContent)])",
    )
    assert all(whole <= visible for whole, visible, _ in tables)
    assert {"User", "Credits", "Recent credits a day"} <= set(tables[0][2])


def test_statements_are_folded_until_somebody_asks(shown):
    browser = shown()
    folded = "[...document.querySelectorAll('#machine-statement details')].map(card => card.open)"
    assert set(ask(browser, folded)) == {False}
    browser.execute_script("document.querySelector('#machine-statement .unfold').click()")
    assert set(ask(browser, folded)) == {True}
    browser = shown(media="print")
    height = "document.querySelector('#machine-statement').getBoundingClientRect().height"
    without = ask(browser, height)
    browser.execute_script("document.querySelector('#machine-statement .unfold').click()")
    assert without < 200 < ask(browser, height)


def test_a_statement_that_was_asked_for_is_not_folded(site):
    with site.load() as accounts:
        accounts.subjects = ("alpha",)
        text = page.html(accounts, build(accounts, ["machine-statement"]))
    assert '<details class="card">' not in text
    assert "opening balance" in text


def test_a_user_leads_to_days_machines_and_slots(shown, wait_for):
    browser = shown()
    link = ask(browser, "document.querySelector('#leaderboards td a')")
    browser.execute_script("arguments[0].click()", link)
    wait_for(lambda: ask(browser, "document.querySelectorAll('#users details[open] > figure canvas').length") == 1)
    unfolded = ask(browser, "document.querySelector('#users details[open]')")
    name = ask(browser, "arguments[0].querySelector('b').textContent", unfolded)
    assert name.endswith(link.text)
    assert ask(browser, "document.querySelectorAll('#users canvas').length") == 1
    machine = ask(browser, "arguments[0].querySelector('details')", unfolded)
    browser.execute_script("arguments[0].querySelector('summary').click()", machine)
    wait_for(lambda: ask(browser, "arguments[0].querySelector('table').checkVisibility()", machine))
    cells = "[...arguments[0].querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    heads, *rows = ask(browser, cells, machine)
    assert heads == ["Claimed", "Slot", "Credits"]
    assert 1 <= len(rows) <= 5
    assert all(re.fullmatch(r"job-\d+", slot) for _, slot, _ in rows)


def test_long_tables_and_lists_are_searched(shown):
    browser = shown()
    browser.execute_script("document.querySelector('#credit-over-time .unfold').click()")
    place = (
        "[...document.querySelectorAll('#credit-over-time .table')]"
        ".find(one => one.ariaLabel.endsWith(': By day, table'))"
    )
    field = ask(browser, f"{place}.previousElementSibling.querySelector('input')")
    whole = ask(browser, f"{place}.querySelectorAll('tbody tr').length")
    field.send_keys("2026-01-02")
    seen = ask(browser, f"[...{place}.querySelectorAll('tbody tr')].filter(row => row.checkVisibility()).length")
    assert seen == 1
    assert ask(browser, f"{place}.previousElementSibling.querySelector('output').textContent") == f"1 of {whole}"
    field.send_keys("\ue003" * len("2026-01-02"))
    assert ask(browser, f"{place}.querySelectorAll('tbody tr:not([hidden])').length") == whole


def test_print_has_of_the_users_what_is_unfolded(shown):
    browser = shown(media="print")
    seen = "[...document.querySelectorAll('#users .outline > details')].filter(one => one.checkVisibility()).length"
    assert ask(browser, seen) == 0
    browser.execute_script("document.querySelector('#users details').open = true")
    assert ask(browser, seen) == 1


@pytest.mark.parametrize("width", [1400, 800, 420])
def test_the_page_fits_its_window(shown, width):
    browser = shown(width)
    assert ask(browser, "document.documentElement.scrollWidth") <= width


def test_print_shows_tables_whole(shown):
    browser = shown(media="print")
    assert ask(browser, "getComputedStyle(document.querySelector('nav')).display") == "none"
    cut = "[...document.querySelectorAll('.table')].filter(table => table.scrollHeight > table.clientHeight + 1).length"
    assert ask(browser, cut) == 0


@pytest.mark.parametrize(
    ("name", "width", "options"),
    [
        ("wide-light", 1400, {}),
        ("wide-dark", 1400, {"dark": True}),
        ("narrow-light", 420, {}),
        ("narrow-dark", 420, {"dark": True}),
        ("print", 800, {"media": "print"}),
    ],
)
def test_pictures_are_kept(shown, request, name, width, options):
    """In `.artefacts/`, for somebody to look at."""
    browser = shown(width, **options)
    height = min(12_000, ask(browser, "document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    folder = request.config.rootpath / ".artefacts"
    folder.mkdir(exist_ok=True)
    picture = folder / f"report-{name}.png"
    picture.write_bytes(base64.b64decode(taken["data"]))
    assert picture.stat().st_size > 50_000


def test_a_report_without_blocks_is_a_heading(make_site):
    site = make_site()
    site.alloc("a")
    with site.load() as accounts:
        text = page.html(accounts, [Report("own", "Own: nothing")])
    assert "<h2>Own: nothing</h2>" in text
