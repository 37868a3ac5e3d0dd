"""A fake with something in its accounts, and a browser's requests to it."""

import http.client
import re
from html import unescape
from urllib.parse import urlencode

import pytest

from cpsim.fake import ANY_PORT, Fake, Site

EVIL = "<img src=x onerror=\"document.title='caught'\">"
POSTED = {"Content-Type": "application/x-www-form-urlencoded"}


def shown(text):
    """The text of a page, without its marks."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


class Visitor:
    """What a browser without a script does: it asks for pages, and sends the forms that they have."""

    def __init__(self, fake):
        self.fake = fake
        self.address = fake.addresses["http"].removesuffix("/api")
        self.connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=280)
        self.headers = {}

        self.is_over = False

    def leave(self):
        """Stop the fake."""
        if not self.is_over:
            self.is_over = True
            self.connection.close()
            self.fake.stop()

    def request(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body, headers or {})
        response = self.connection.getresponse()
        self.headers = response.headers
        return response.status, response.read().decode()

    def get(self, page="", headers=None, **query):
        return self.request("GET", f"/{page}?{urlencode(query)}" if query else f"/{page}", None, headers)

    def text(self, page="", **query):
        """A page, which there is."""
        status, text = self.get(page, **query)
        assert status == 200, text
        return text

    @property
    def token(self):
        return re.search(r'name="token" value="([^"]+)"', self.text())[1]

    def send(self, what, headers=None, **fields):
        return self.request("POST", f"/do/{what}", urlencode(fields), POSTED | (headers or {}))


def fill(fake, jobs=200):
    """Jobs of a site, a third of which are still out; some commands are refused, and some ids would like to be run."""
    fake.accounts.link([*((f"worker-{number}", f"user-{number % 3}") for number in range(10)), (EVIL, EVIL)])
    for number in range(jobs):
        slot = f"job-{number}"
        calls = [("alloc", {"slot": slot, "min": 1, "max": 20}), ("counters", {"slot": slot, "job/events": number})]
        if number % 3 == 0:
            calls.append(("claim", {"slot": slot, "machine": f"worker-{number % 10}", "credits": number}))
        elif number % 3 == 1:
            calls += [("discard", {"slot": slot, "reason": EVIL}), ("claim", {"slot": slot, "machine": "late"})]
        fake.accounts.apply("physics", calls)
    calls = [
        ("alloc", {"slot": EVIL}),
        ("meta", {"slot": EVIL, EVIL: EVIL}),
        ("claim", {"slot": EVIL, "machine": EVIL}),
    ]
    fake.accounts.apply("physics", [*calls, ("claim", {"slot": EVIL, "machine": EVIL})])


@pytest.fixture
def start(tmp_path):
    """Start a fake with a daemon for the first of its projects, and return a visitor."""
    started = []

    def start(**options):
        sites = [Site(project_id="physics", unix=tmp_path / f"{len(started)}.socket", flush_interval_s=0.05)]
        given = {"http": ANY_PORT, "sites": sites} | options
        fake = Fake({"physics": "s", "chemistry": "t"}, **given)
        fake.start()
        started.append(Visitor(fake))
        return started[-1]

    yield start
    for visitor in started:
        visitor.leave()


@pytest.fixture
def visitor(start):
    """Of a fake that has seen some work."""
    visitor = start()
    fill(visitor.fake)
    return visitor
