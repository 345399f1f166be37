"""Pages of the book in a browser: no kernel, no network but the widget manager's own scripts, and the pickers work."""

import functools
import json
import os
import re
import shutil
import subprocess
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from ipywidgets.embed import dependency_state, embed_minimal_html
from nbconvert import HTMLExporter
from PIL import Image

from gradcam_nb.explain import explain
from gradcam_nb.widgets.picker import picker

ROOT = Path(__file__).resolve().parent.parent
STATE = "application/vnd.jupyter.widget-state+json"
PROJECT = "execute: {enabled: false}\nformat: {html: {theme: {light: cosmo, dark: darkly}}}\n"


@pytest.fixture(scope="module")
def page_of(filtered):
    """A page as the book is made from it: the filter has run, and the state of its widgets is in it."""
    return functools.cache(lambda name: filtered(ROOT / f"nbs/{name}.ipynb"))


def without_links(text):
    """The same page, but nothing links its menus to its pictures."""
    page = json.loads(text)
    state = page["metadata"]["widgets"][STATE]["state"]
    page["metadata"]["widgets"][STATE]["state"] = {key: widget for key, widget in state.items() if widget["model_name"] != "LinkModel"}
    return json.dumps(page)


@pytest.fixture(scope="module")
def build(tmp_path_factory, page_of):
    """A page as an HTML file: by Quarto where it is installed, else by nbconvert."""
    folder = tmp_path_factory.mktemp("book")

    @functools.cache
    def build(name, theme="light", change=str):
        stem = f"{name.replace('/', '-')}-{theme}-{change.__name__}"
        made, text = folder / f"{stem}.html", change(page_of(name))
        if shutil.which("quarto"):
            (folder / "_quarto.yml").write_text(PROJECT)
            (folder / f"{stem}.ipynb").write_text(text)
            subprocess.run(["quarto", "render", f"{stem}.ipynb", "--to", "html", "--quiet"], cwd=folder, check=True)
            html = made.read_text()
        else:
            html, _ = HTMLExporter(theme=theme).from_notebook_node(nbformat.reads(text, 4))
        # npm's scripts are not the very bytes of those on the net.
        made.write_text(re.sub(r'\sintegrity="[^"]*"', "", html))
        return made.as_uri()

    return build


@pytest.fixture
def opened(build, offline_page):
    """A function that opens a page and waits until its widgets are there."""

    def opened(name, theme="light", change=str, wait=".gradcam-picker select", **options):
        page = offline_page(color_scheme=theme, **options)
        page.goto(build(name, theme, change))
        if options.get("java_script_enabled", True):
            if theme == "dark":
                page.evaluate("window.quartoToggleColorScheme && window.quartoToggleColorScheme()")
            page.locator(wait).first.wait_for()
        return page

    return opened


def unlike(one, other):
    """How far two pictures are from one another, at the size of the first, in grey levels."""
    other = other.convert("RGB").resize(one.size, Image.Resampling.BILINEAR)
    return np.abs(np.asarray(one.convert("RGB"), dtype=float) - np.asarray(other, dtype=float)).mean()


def on_screen(image):
    return Image.open(BytesIO(image.screenshot()))


STAGES = {
    "photo:photographer": {"stage 4": "blocks.6", "stage 3": "blocks.4", "stage 2": "blocks.2", "stage 1": "blocks.1"},
    "scene:2016": {f"stage {n}": f"layer{n}" for n in (4, 3, 2, 1)},
}
LAYERS = {f"layer{n}": f"layer{n}" for n in (1, 2, 3, 4)}


def shows(page, image, method, chosen):
    """Whether a picker shows this choice: the picture that `explain` gives, but for what JPEG costs, and on the screen."""
    from playwright.sync_api import expect

    by_stage = chosen in STAGES[image]
    layers = STAGES[image] if by_stage else LAYERS
    named = f"picture {image.partition(':')[0]}, method {method}, stage {chosen}" if by_stage else f"method {method}, layer {chosen}"
    seen = page.locator(".gradcam-picker img:visible")
    expect(seen).to_have_count(1)
    expect(seen).to_have_attribute("alt", f"heat map: {named}", timeout=1500)
    stored = Image.open(BytesIO(b64decode(seen.get_attribute("src").split("base64,")[1])))
    expected, *others = [
        explain(image, method=method, layer=layers[one]).overlay() for one in sorted(layers, key=lambda one: one != chosen)
    ]
    assert unlike(stored, expected) < 4 < 8 < min(unlike(stored, other) for other in others)
    shot = on_screen(seen)
    assert unlike(shot, expected) < 5 < min(unlike(shot, other) for other in others)


@pytest.mark.parametrize("path", sorted((ROOT / "nbs/methods").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_method_has_a_picker(path):
    """The picker is made when the book is; its pictures stand beside it as they were when the page was run."""
    cells = nbformat.read(path, 4).cells
    made_with_the_book = [cell for cell in cells if cell.source.startswith("#| exec_doc")]
    assert [cell for cell in made_with_the_book if re.search(r"^picker\(", cell.source, flags=re.M)]
    figures = [cell for cell in cells if cell.source.startswith("picker_figure(images")]
    assert figures
    for cell in figures:
        assert "image/png" in cell.outputs[0]["data"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]


PHOTO, SCENE = STAGES


def test_the_pickers_of_a_method(opened):
    """By mouse, and by the keyboard alone."""
    page = opened("methods/gradcam")
    shows(page, PHOTO, "GradCAM", "stage 4")
    page.get_by_label("stage", exact=True).select_option("stage 2")
    shows(page, PHOTO, "GradCAM", "stage 2")
    page.get_by_label("picture", exact=True).focus()
    page.keyboard.press("ArrowDown")
    shows(page, SCENE, "GradCAM", "stage 2")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    shows(page, SCENE, "HiResCAM", "stage 2")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    shows(page, SCENE, "HiResCAM", "stage 3")
    assert not [address for address in page.refused if "widget" in address or "require" in address]


def test_the_pickers_of_all_methods(opened):
    page = opened("compare")
    shows(page, SCENE, "GradCAM", "layer4")
    page.get_by_label("method", exact=True).select_option("ShapleyCAM")
    page.get_by_label("layer", exact=True).select_option("layer3")
    shows(page, SCENE, "ShapleyCAM", "layer3")
    page.get_by_label("method", exact=True).select_option("SegEigenCAM")
    shows(page, SCENE, "SegEigenCAM", "layer3")


def test_without_links_nothing_changes(opened):
    """What these tests see is seen: a page whose menus are linked to nothing fails them."""
    page = opened("methods/gradcam", change=without_links)
    shows(page, PHOTO, "GradCAM", "stage 4")
    page.get_by_label("stage", exact=True).select_option("stage 2")
    with pytest.raises(AssertionError):
        shows(page, PHOTO, "GradCAM", "stage 2")
    shows(page, PHOTO, "GradCAM", "stage 4")


def test_the_slider_of_a_volume(opened, page_of):
    page = opened("widgets/slices", wait=".noUi-handle")
    state = json.loads(page_of("widgets/slices"))["metadata"]["widgets"][STATE]["state"]
    pictures = next(widget["state"]["children"] for widget in state.values() if widget["model_name"] == "StackModel")
    pictures = [Image.open(BytesIO(b64decode(state[key.removeprefix("IPY_MODEL_")]["buffers"][0]["data"]))) for key in pictures]
    image = page.locator("img.widget-image:visible")

    def nearest():
        return min(range(len(pictures)), key=lambda i: unlike(on_screen(image), pictures[i]))

    assert nearest() == 9
    page.locator(".noUi-handle").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.get_by_text("12", exact=True).wait_for()
    assert nearest() == 12


def test_a_plain_figure_without_scripts(opened):
    """Nothing of a picker is there, but all its pictures are."""
    cells = nbformat.read(ROOT / "nbs/methods/gradcam.ipynb", 4).cells
    figure = next(cell.outputs[0]["data"]["image/png"] for cell in cells if cell.source == "picker_figure(images)")
    figure = Image.open(BytesIO(b64decode(figure)))
    page = opened("methods/gradcam", java_script_enabled=False)
    assert page.locator(".gradcam-picker").count() == 0
    nearest, *others = sorted(unlike(on_screen(image), figure) for image in page.locator("img:visible").all())
    assert nearest < 10 < 30 < min(others)


def readable(page):
    """Whether the words of a picker stand out from the page."""
    words = page.locator(".gradcam-picker label:visible, .gradcam-picker select").all()
    assert words
    assert min(word.evaluate(CONTRAST) for word in words) > 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_readable_and_a_screenshot(opened, theme):
    """GRADCAM_NB_SCREENSHOTS names the folder where the book's pictures of a picker go."""
    page = opened("methods/gradcam", theme, viewport={"width": 680, "height": 700})
    readable(page)
    page.get_by_label("method", exact=True).focus()
    shot = Image.open(BytesIO(page.locator(".gradcam-picker").screenshot())).convert("RGB")
    assert (np.asarray(shot)[-1, -1].mean() < 128) == (theme == "dark")
    if folder := os.environ.get("GRADCAM_NB_SCREENSHOTS"):
        path = ROOT / folder / f"picker_{theme}.png"
        shot.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
        assert path.stat().st_size < 150_000


@pytest.mark.parametrize("colours", ["background: white; color: black", "background: #222; color: white"])
def test_readable_on_any_page(offline_page, tmp_path, colours):
    """The widget manager's own words are black; a picker's take the page's colour."""
    box = picker({"one": Image.new("RGB", (8, 8)), "two": Image.new("RGB", (8, 8))}, "which")
    embed_minimal_html(tmp_path / "page.html", views=[box], state=dependency_state(box))
    text = (tmp_path / "page.html").read_text().replace("<body>", f'<body style="{colours}">')
    (tmp_path / "page.html").write_text(re.sub(r'\sintegrity="[^"]*"', "", text))
    page = offline_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.locator(".gradcam-picker select").wait_for()
    readable(page)


# The contrast of an element's words with what lies behind them, as WCAG 2 has it.
CONTRAST = """element => {
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    let behind = element;
    while (behind.parentElement && numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const light = text => {
        const [r, g, b] = numbers(text).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light).sort();
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}"""
