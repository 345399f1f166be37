"""Chromium for tests: one for each file; npm's scripts stand in for the network, and nothing else does."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NPM = ROOT / ".venv/npm/node_modules"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = """--no-sandbox --headless --disable-background-networking --disable-gpu --disable-quic --no-first-run
          --disable-component-update --disable-sync""".split()
# What a page asks for, by the end of its address, and what answers it.
SCRIPTS = {
    "/require.min.js": NPM / "requirejs/require.js",
    "/require.js": NPM / "requirejs/require.js",
    "/jquery.min.js": NPM / "jquery/dist/jquery.min.js",
    "/dist/embed-amd.js": NPM / "@jupyter-widgets/html-manager/dist/embed-amd.js",
}


def missing(what):
    """Skip, saying so; where everything is meant to be there (CI=true), fail."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what}; `make browser` gets it where it may")


@pytest.fixture(scope="module")
def chromium():
    """A running Chromium of this machine. It ends with the file: while Playwright runs, no other event loop can."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing(f"no Chromium on PATH ({', '.join(NAMES)})")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """A function that gives an empty page; options as for Playwright's `new_context`, such as `color_scheme="dark"`."""
    contexts = []

    def new(**options):
        contexts.append(chromium.new_context(**{"viewport": {"width": 900, "height": 700}, **options}))
        return contexts[-1].new_page()

    yield new
    for context in contexts:
        context.close()


@pytest.fixture
def offline_page(new_page):
    """As `new_page`, but the page gets its own file and the widget manager's scripts, and nothing else.

    `page.refused` lists what it asked for in vain.
    """
    for script in SCRIPTS.values():
        if not script.is_file():
            missing(f"{script.relative_to(ROOT)} is not there")

    def new(**options):
        page = new_page(**options)
        page.refused = []

        def answer(route):
            address = route.request.url.split("?")[0]
            script = next((file for end, file in SCRIPTS.items() if address.endswith(end)), None)
            if address.startswith(("file:", "data:", "blob:")):
                route.continue_()
            elif script:
                # A page that is a file asks across origins.
                route.fulfill(path=script, content_type="text/javascript", headers={"Access-Control-Allow-Origin": "*"})
            else:
                page.refused.append(address)
                route.abort()

        page.context.route("**/*", answer)
        return page

    return new
