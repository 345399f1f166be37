"""The explorer in a real JupyterLab and a real Chromium: every click changes the picture as it should."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser import missing
from PIL import Image

from gradcam_nb.samples.scenes import CLASSES
from gradcam_nb.widgets.measuring import measure
from gradcam_nb.widgets.painting import Panel, raw_map
from gradcam_nb.widgets.session import Session

ROOT = Path(__file__).resolve().parent.parent
LAYER = "Layer (with Ctrl: several, fused)"
SCREENSHOTS = os.environ.get("GRADCAM_NB_SCREENSHOTS")
BYTES = "async img => { try { return Array.from(new Uint8Array(await (await fetch(img.src)).arrayBuffer())) } catch { return null } }"
# Cells that are out of sight stay in the page; no question about news stands before the panel.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
QUICK = {
    "cells": [
        {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for source in ("from gradcam_nb import explore", "explore()")
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
QUICK["cells"][1]["id"] = "b"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own: the address, and the folder that it serves."""
    home = tmp_path_factory.mktemp("lab")
    files = home / "files"
    files.mkdir()
    shutil.copy(ROOT / "nbs/widgets/explore.ipynb", files)
    (files / "quick.ipynb").write_text(json.dumps(QUICK))
    for name, setting in SETTINGS.items():
        file = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    places = {f"JUPYTER{name}_DIR": str(home / name.strip("_").lower()) for name in ("_CONFIG", "_RUNTIME", "_DATA", "LAB_WORKSPACES")}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    environment = {**os.environ, **places, "PYTHONWARNINGS": "ignore"}
    log = (home / "log").open("w")
    options = [
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--LabApp.expose_app_in_browser=True",
    ]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={files}"]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _address(home, server), files
    finally:
        server.terminate()
        server.wait(20)


def _address(home, server):
    until = time.monotonic() + 90
    while time.monotonic() < until and server.poll() is None:
        for file in (home / "runtime").glob("jpserver-*.json"):
            try:
                url = json.loads(file.read_text())["url"]
                urllib.request.urlopen(url + "api").read()
                return url
            except (OSError, ValueError):
                pass
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start: {(home / 'log').read_text()[-2000:]}")


def _open(chromium, lab, notebook, **options):
    address, _ = lab
    context = chromium.new_context(viewport={"width": 1400, "height": 1000}, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address.rstrip("/"))
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.set_default_navigation_timeout(60_000)
    page.goto(f"{address}lab/tree/{notebook}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.get_by_text("| Idle").wait_for()
    return page


class Shown:
    """The panel in the page."""

    def __init__(self, page):
        self.page = page
        self.root = page.locator(".jp-OutputArea-output .widget-vbox").first

    def picture(self, i):
        """The i-th picture, as numbers."""
        data = None
        while data is None:  # its source may be taken away by the next picture just then
            data = self.root.locator(".gradcam-nb img").nth(i).evaluate(BYTES)
        return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB")).astype(int)

    def choose(self, label, *values):
        self.root.get_by_label(label, exact=True).first.select_option(list(values))

    def layer(self, *values):
        self.choose(LAYER, *values)

    def slider(self, name):
        return self.root.locator(".widget-hslider", has_text=name).locator(".noUi-handle")

    def until(self, picture, i=1, seconds=20.0):
        """Wait until the i-th picture is this one."""
        begun = time.monotonic()
        while True:
            there = self.picture(i)
            if there.shape == picture.shape and np.abs(there - picture).mean() < 1:
                return time.monotonic() - begun
            if time.monotonic() - begun > seconds:
                pytest.fail(f"picture {i} is not the expected one after {seconds} s; said: {self.said()}; shown: {self.state()}")
            time.sleep(0.02)

    def state(self):
        """The titles, what the lists have chosen, and the sliders' numbers."""
        lists = self.root.locator(".gradcam-nb select").evaluate_all("all => all.map(e => [...e.selectedOptions].map(o => o.value))")
        titles = self.root.locator(".gradcam-nb img").evaluate_all("all => all.map(one => one.alt)")
        return titles[:3], lists, self.root.locator(".widget-readout").all_inner_texts()

    def said(self):
        return self.root.locator("[role=alert]").all_inner_texts()


@pytest.fixture(scope="module")
def session():
    return Session("scenes-cnn", "scene:3")


@pytest.fixture(scope="module")
def expected(session):
    """What the panel ought to show."""
    panel = Panel(session.pictures[0], session.region(0))

    def picture(i=1, colormap="turbo", opacity=0.5, threshold=0.0, **setting):
        heat = session.explain(session.setting(**setting)).heat_map
        if i == 1:
            image = panel.painted(heat, colormap=colormap, opacity=opacity, threshold=threshold)
        else:
            image = raw_map(heat, colormap, threshold)
        return np.asarray(image.convert("RGB")).astype(int)

    return picture


@pytest.fixture(scope="module")
def shown(chromium, lab):
    """The explorer's own notebook, run from the menu."""
    page = _open(chromium, lab, "explore.ipynb")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.gradcam-nb img')[1]?.naturalWidth > 1")
    yield Shown(page)
    page.context.close()


def test_first_picture(shown, expected):
    shown.until(expected())
    assert (np.abs(shown.picture(0) - expected(opacity=0)) < 2).all()
    shown.until(expected(i=2), i=2)


def test_layer_method_target(shown, expected, session):
    shown.layer("layer2")
    shown.until(expected(layers="layer2"))
    shown.choose("Method", "LayerCAM")
    shown.until(expected(layers="layer2", method="LayerCAM"))
    second = session.questions(0)[1]
    shown.choose("Target", second.code)
    shown.until(expected(layers="layer2", method="LayerCAM", asked=second))
    shown.layer("layer3", "layer4")
    shown.until(expected(layers=["layer3", "layer4"], method="LayerCAM", asked=second))
    shown.layer("layer2")
    shown.until(expected(layers="layer2", method="LayerCAM", asked=second), seconds=1)


def test_a_long_list_is_filtered(shown, session):
    """By a part of the name or by the whole number; what is chosen and does not fit stays chosen."""
    target = shown.root.get_by_label("Target", exact=True)
    find, all_of_them = shown.root.get_by_label("filter: Target"), target.locator("option").count()
    find.fill("star")
    labels = target.locator("option").all_inner_texts()
    assert 0 < len(labels) < all_of_them
    assert all("star" in label for label in labels)
    before = shown.state()[0][1]
    find.fill("7")
    target.locator("option").first.wait_for(state="attached")
    assert target.locator("option").first.get_attribute("value") == "7"
    find.press("Enter")
    shown.page.wait_for_function("before => document.querySelectorAll('.gradcam-nb img')[1].alt !== before", arg=before)
    assert shown.state()[0][1].startswith(CLASSES[7])
    find.press("Escape")
    assert target.locator("option").count() == all_of_them
    shown.choose("Target", session.questions(0)[1].code)


def test_a_dead_layer_is_grey(shown):
    options = shown.root.get_by_label(LAYER, exact=True).locator("option")
    assert options.filter(has_text="fc").last.is_disabled()
    assert options.filter(has_text="suggested").count() == 1


def test_colours(shown, expected, session):
    """Keyboard alone; the run is not repeated, and the picture follows within a tenth of a second."""
    how = dict(layers="layer2", method="LayerCAM", asked=session.questions(0)[1])
    shown.slider("Threshold").focus()
    for _ in range(3):
        shown.page.keyboard.press("PageUp")
    value = float(shown.root.locator(".widget-hslider", has_text="Threshold").locator(".widget-readout").inner_text())
    assert value > 0.1
    shown.until(expected(threshold=value, **how))
    shown.until(expected(i=2, threshold=value, **how), i=2)
    shown.root.get_by_label("Colours").select_option("viridis")
    shown.until(expected(threshold=value, colormap="viridis", **how))


def test_pointer(shown, session):
    picture = shown.root.locator(".gradcam-nb img").nth(1)
    picture.hover(position={"x": 30, "y": 40})
    reading = shown.root.get_by_text("heat 0.").or_(shown.root.get_by_text("heat 1."))
    first = reading.inner_text()
    picture.focus()
    shown.page.keyboard.press("ArrowRight")
    until = time.monotonic() + 5
    while reading.inner_text() == first and time.monotonic() < until:
        time.sleep(0.02)
    box = picture.bounding_box()
    setting = session.setting(layers="layer2", method="LayerCAM", asked=session.questions(0)[1])
    side = session.pictures[0].width
    x, y = (30 / box["width"] + 0.02) * side, 40 / box["height"] * side
    assert f"x {x:.0f}, y {y:.0f}" in reading.inner_text()
    there = session.explain(setting).heat_map[int(y), int(x)].item()
    assert abs(float(reading.inner_text().split("heat ")[1][:4]) - there) < 0.02


def test_compare(shown, session):
    shown.root.get_by_role("tab", name="Compare").click()
    shown.root.get_by_role("button", name="Compare").click()
    table = shown.root.locator("table").first
    table.wait_for()
    names = table.locator("img").evaluate_all("all => all.map(one => one.alt)")
    layers = table.locator("th[scope=col]").all_inner_texts()
    assert len(layers) > 2
    assert names == [f"{method} at {layer}" for method in ("GradCAM", "HiResCAM", "LayerCAM") for layer in layers]
    panel = Panel(session.pictures[0], session.region(0))
    colours = dict(colormap="viridis", opacity=0.5, threshold=shown_threshold(shown))
    source = table.locator("img").nth(len(layers)).get_attribute("src")
    there = np.asarray(Image.open(urllib.request.urlopen(source)).convert("RGB")).astype(int)
    heat = session.explain(session.setting(method="HiResCAM", layers=layers[0], asked=session.questions(0)[1])).heat_map
    assert np.abs(there - np.asarray(panel.painted(heat, **colours)).astype(int)).mean() < 1
    table.get_by_alt_text(f"HiResCAM at {layers[0]}").click()  # a click shows it above
    shown.until(np.asarray(panel.painted(heat, **colours)).astype(int))
    assert shown.state()[1][1] == ["HiResCAM"]
    shown.choose("Method", "LayerCAM")
    shown.layer("layer2")
    how = dict(layers="layer2", method="LayerCAM", asked=session.questions(0)[1])
    shown.until(np.asarray(panel.painted(session.explain(session.setting(**how)).heat_map, **colours)).astype(int))


def shown_threshold(shown):
    return float(shown.root.locator(".widget-hslider", has_text="Threshold").locator(".widget-readout").inner_text())


def test_measure(shown, session):
    shown.root.get_by_role("tab", name="Measure").click()
    shown.root.get_by_label("Metric").select_option("DropInConfidence")
    shown.root.get_by_role("button", name="Measure").click()
    cell = shown.root.locator("table:visible td")
    cell.first.wait_for()
    setting = session.setting(layers="layer2", method="LayerCAM", asked=session.questions(0)[1])
    assert abs(float(cell.nth(1).inner_text()) - measure(session, setting, "DropInConfidence")) < 1e-3


def test_copied_code_in_a_fresh_process(shown, lab, tmp_path):
    """The copied code gives the map that Save writes."""
    shown.root.get_by_role("tab", name="Copy code").click()
    shown.root.get_by_role("button", name="Copy code").click()
    shown.root.get_by_text("copied").wait_for()
    code = shown.page.evaluate("navigator.clipboard.readText()")
    assert "LayerCAM" in code
    assert "viridis" in code
    shown.root.get_by_role("tab", name="Save").click()
    shown.root.get_by_role("button", name="Save").click()
    shown.root.get_by_text("saved: ").wait_for()
    folder = lab[1] / "explanations"
    assert sorted(file.name for file in folder.iterdir()) == ["explanation.json", "explanation_heat_map.npy", "explanation_overlay.png"]
    settings = json.loads((folder / "explanation.json").read_text())["settings"]
    assert settings["code"] == code
    assert settings["layers"] == ["layer2"]
    assert settings["colormap"] == "viridis"
    lines, _, overlay = code.rpartition("\n")
    lines += f"\n{overlay}.save('overlay.png')\nimport numpy\nnumpy.save('map.npy', explanation.heat_map.numpy())"
    subprocess.run([sys.executable, "-W", "ignore", "-c", lines], check=True, cwd=tmp_path)
    assert np.abs(np.load(tmp_path / "map.npy") - np.load(folder / "explanation_heat_map.npy")).max() < 1e-4
    one, other = (np.asarray(Image.open(file)).astype(int) for file in (tmp_path / "overlay.png", folder / "explanation_overlay.png"))
    assert np.abs(one - other).max() <= 2


def test_stop(shown, expected, session):
    """A slow method shows how far it is; stopped, the map before stays, and the panel goes on."""
    before = shown.picture(1)
    shown.choose("Method", "SSCAM")
    shown.root.get_by_text("passes").first.wait_for()
    shown.root.get_by_role("button", name="Stop").click()
    shown.root.get_by_text("stopped").wait_for()
    assert (shown.picture(1) == before).all()
    shown.choose("Method", "HiResCAM")
    shown.until(
        expected(layers="layer2", method="HiResCAM", asked=session.questions(0)[1], threshold=shown_threshold(shown), colormap="viridis")
    )
    assert shown.said() == []


def test_errors_in_plain_words(shown, expected, session):
    grey = shown.root.get_by_label("Method", exact=True).first.locator("option", has_text="AttentionRollout")
    assert grey.is_disabled()
    assert "no attention" in grey.inner_text()
    file = shown.root.get_by_placeholder("a file, such as photos/dog.jpg")
    file.fill("nowhere.jpg")
    file.press("Enter")
    shown.root.locator("[role=alert]").wait_for()
    assert "nowhere.jpg" in shown.said()[0]
    assert "Traceback" not in shown.page.content()
    shown.choose("Method", "LayerCAM")
    shown.choose("Method", "GradCAM")
    shown.until(
        expected(layers="layer2", method="GradCAM", asked=session.questions(0)[1], threshold=shown_threshold(shown), colormap="viridis")
    )


@pytest.mark.slow  # it measures, and other tests take the cores just then
def test_quick(chromium, lab, expected):
    """In bare imports of what it stands on: import and first picture take 1.5, another layer or method an 8th, colours a 40th."""
    page = _open(chromium, lab, "quick.ipynb")
    for _ in range(5):  # other tests may take both cores just then
        bare, first = _bare_imports(), _first_picture(page)
        if first < 1.5 * bare:
            break
    shown = Shown(page)
    shown.until(expected())
    taken = {"layer": [], "method": [], "colours": []}
    for layer, method in (("layer3", "LayerCAM"), ("layer2", "HiResCAM"), ("layer3", "XGradCAM")):
        taken["layer"].append(_changed(shown, partial(shown.layer, layer)))
        taken["method"].append(_changed(shown, partial(shown.choose, "Method", method)))
    for name in ("viridis", "magma", "jet"):
        taken["colours"].append(_changed(shown, partial(shown.root.get_by_label("Colours").select_option, name)))
    page.context.close()
    median = {name: sorted(times)[1] for name, times in taken.items()}
    said = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in median.items())
    print(f"bare imports {bare:.2f} s, first picture {first:.2f} s,", said)
    assert first < 1.5 * bare
    assert median["layer"] < bare / 8
    assert median["method"] < bare / 8
    assert median["colours"] < bare / 40


def _bare_imports():
    """Seconds that a fresh Python takes to import the libraries that the explorer stands on: the pace of this machine at this moment."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import cv2, ipywidgets, matplotlib.pyplot, timm, torchvision"], check=True)
    return time.monotonic() - begun


def _first_picture(page):
    """Seconds from importing the package in a fresh kernel, and running `explore()`, to the picture on the screen."""
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.get_by_text("| Idle").wait_for()
    page.locator(".jp-CodeCell .cm-content").first.click()
    begun = time.monotonic()
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.wait_for_function("document.querySelectorAll('.gradcam-nb img')[1]?.naturalWidth > 1")
    return time.monotonic() - begun


WATCH = """img => {
  const before = img.src;
  window.changed = new Promise(done => {
    const seen = new MutationObserver(() => {
      if (img.src === before) return;
      seen.disconnect();
      img.decode().finally(() => done(performance.now()));
    });
    seen.observe(img, { attributes: true, attributeFilter: ["src"] });
  });
  document.addEventListener("change", () => { window.acted = performance.now(); }, { capture: true, once: true });
}"""


def _changed(shown, act):
    """Seconds from an act to another overlay on the screen, by the browser's own clock."""
    image = shown.root.locator(".gradcam-nb img").nth(1).element_handle()
    shown.page.evaluate(WATCH, image)
    act()
    return shown.page.evaluate("async () => (await window.changed) - window.acted") / 1000


def test_screens(shown, expected, session):
    """Light and dark, wide and narrow: nothing is cut off, and text differs from its ground."""
    page = shown.page
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": 1240, "height": 1240})
    shown.choose("Target", session.questions(0)[0].code)
    shown.choose("Method", "LayerCAM")
    shown.layer(session.suggested)
    shown.root.get_by_label("Colours").select_option("turbo")
    until = time.monotonic() + 20
    while shown_threshold(shown) > 0 and time.monotonic() < until:
        shown.slider("Threshold").press("Home")  # while the page lays itself out anew, it may take the focus away
        time.sleep(0.2)
    shown.until(expected(method="LayerCAM"))
    shown.root.get_by_role("tab", name="Compare").click()
    shown.root.get_by_role("button", name="Compare").click()
    shown.root.get_by_text(f"for {session.questions(0)[0].label}").wait_for()
    for theme in ("Light", "Dark"):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", f"JupyterLab {theme}")
        page.wait_for_selector(f"body[data-jp-theme-light={'true' if theme == 'Light' else 'false'}]", state="attached")
        shown.root.get_by_role("tab", name="Compare").click()
        shown.root.scroll_into_view_if_needed()
        for select in shown.root.locator(".gradcam-nb select").all():
            ink, ground = select.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
            assert abs(_brightness(ink) - _brightness(ground)) > 100
        if SCREENSHOTS:
            picture = Image.open(io.BytesIO(shown.root.screenshot())).convert("RGB")
            picture.quantize(200, dither=Image.Dither.NONE).save(f"{SCREENSHOTS}/explorer_{theme.lower()}.png", optimize=True)
    page.set_viewport_size({"width": 620, "height": 900})
    width = shown.root.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert width[0] <= width[1] + 2


def _brightness(colour):
    return sum(float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3


KEYS = ["ArrowDown", "ArrowUp", "a", "b", "x", "c", "v", "z", "m", "y", "1", "d", "d", "0", "0", "Escape", "Shift+M", "Enter", "Space"]


def test_keys_belong_to_the_panel(shown):
    """Each of them is a command of the notebook's, were the focus elsewhere: insert, cut, delete, merge a cell, restart the kernel."""
    page, root = shown.page, shown.root
    cells = page.locator(".jp-Notebook .jp-Cell")
    before, code = cells.count(), cells.all_inner_texts()
    boxes = root.locator("input[type=checkbox]")
    controls = [root.get_by_label(name, exact=True).first for name in ("Method", "Target", LAYER, "Colours", "Sample")]
    controls += [boxes.nth(0), root.locator(".gradcam-nb img").first, shown.slider("Opacity"), root.get_by_role("tab").first]
    for control in controls:
        control.focus()
        for key in KEYS:
            page.keyboard.press(key)
            control.focus()
        assert cells.count() == before
        assert root.is_visible()
        assert page.get_by_role("dialog").count() == 0
    assert [text.partition("\n")[0] for text in cells.all_inner_texts()] == [text.partition("\n")[0] for text in code]
    shown.choose("Method", "GradCAM")
    method = root.get_by_label("Method", exact=True).first
    method.focus()
    page.keyboard.press("ArrowDown")
    assert method.evaluate("e => e.selectedOptions[0].value") != "GradCAM"
    page.keyboard.press("Tab")
    assert root.evaluate("root => root.contains(document.activeElement)")


def test_a_picture_is_enlarged_and_moved(shown):
    """At the pointer, all three together; the value that is read is that of the place in the picture."""
    page, pictures = shown.page, [shown.root.locator(".gradcam-nb img").nth(i) for i in range(3)]
    pictures[1].focus()
    for _ in range(4):
        page.keyboard.press("+")
    page.wait_for_function("[...document.querySelectorAll('.gradcam-nb-frame img')].every(i => i.style.transform.includes('scale'))")
    frame, image = (shown.root.locator(selector).nth(1).bounding_box() for selector in (".gradcam-nb-frame", ".gradcam-nb-frame img"))
    assert image["width"] == pytest.approx(1.25**4 * frame["width"], rel=0.02)
    assert image["x"] <= frame["x"] + 1 and image["x"] + image["width"] >= frame["x"] + frame["width"] - 1
    pictures[1].hover(position={"x": (frame["x"] - image["x"]) + 20, "y": (frame["y"] - image["y"]) + 20})
    share = ((frame["x"] - image["x"]) + 20) / image["width"]
    shown.root.get_by_text(f"x {share * 128:.0f},").wait_for()
    page.mouse.down()
    page.mouse.move(frame["x"] + 60, frame["y"] + 20, steps=4)
    page.mouse.up()
    moved = pictures[1].bounding_box()
    assert moved["x"] > image["x"] + 10
    pictures[1].focus()
    page.keyboard.press("0")
    page.wait_for_function("[...document.querySelectorAll('.gradcam-nb-frame img')].every(i => !i.style.transform)")


NAME = """() => {
  const e = document.activeElement, row = e.closest('.widget-inline-hbox');
  const by = e.labels?.[0]?.textContent || row?.querySelector('label')?.textContent;
  return e.getAttribute('aria-label') || by || e.textContent || e.alt || '';
}"""


def test_with_the_keyboard_alone(shown, lab, session):
    """From the first field to the saved files."""
    page, press = shown.page, shown.page.keyboard.press

    def tab_to(name):
        for _ in range(120):
            press("Tab")
            if page.evaluate(NAME).strip() == name and shown.root.evaluate("root => root.contains(document.activeElement)"):
                return
        pytest.fail(f"Tab does not come to {name!r}; it is at {page.evaluate(NAME)!r}")

    shown.root.locator("input").first.focus()
    tab_to("filter: Target")
    page.keyboard.type(session.questions(0)[2].label.split(" (")[0])
    press("Enter")
    tab_to("Method")
    press("Home")
    press("ArrowDown")
    tab_to("Layer (with Ctrl: several, fused)")
    press("Home")
    page.wait_for_function("() => !document.querySelector('[role=status]')?.textContent.includes('…')")
    tab_to("Compare")
    for _ in range(3):
        press("ArrowRight")
    press("Enter")
    tab_to("Name")
    press("Control+A")
    page.keyboard.type("by_keyboard")
    tab_to("Save")
    press("Enter")
    shown.root.get_by_text("by_keyboard_overlay.png").wait_for()
    settings = json.loads((lab[1] / "explanations/by_keyboard.json").read_text())["settings"]
    assert settings["label"] == session.questions(0)[2].label


AXE = ROOT / ".venv/npm/node_modules/axe-core/axe.min.js"


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_nothing_keeps_people_out(shown, theme):
    """axe-core finds no serious violation in the panel."""
    if not AXE.is_file():
        missing("axe-core is not there")
    page = shown.page
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", f"JupyterLab {theme}")
    page.wait_for_selector(f"body[data-jp-theme-light={'true' if theme == 'Light' else 'false'}]", state="attached")
    page.evaluate(AXE.read_text())
    found = shown.root.evaluate("async root => (await axe.run(root, { resultTypes: ['violations'] })).violations")
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["help"], [node["html"][:150] for node in one["nodes"]]) for one in serious] == []


@pytest.mark.parametrize("width", [390, 700, 1400, 2200])
def test_it_uses_the_width_that_it_gets(shown, width):
    """Nothing is cut off, and nothing stands still at one size."""
    page = shown.page
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_function("width => window.innerWidth === width", arg=width)
    inner, own = shown.root.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert inner <= own + 2
    pictures = [shown.root.locator(".gradcam-nb-frame").nth(i).bounding_box() for i in range(3)]
    side_by_side = pictures[0]["y"] == pictures[2]["y"]
    assert side_by_side == (width >= 1400)
    assert pictures[1]["width"] >= 120
