"""The network and the photos that come by pip: what it sees in them, where, and what happens to its weights."""

import multiprocessing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch

from gradcam_nb import Preprocess, explain, load_model
from gradcam_nb.ask import default_model
from gradcam_nb.imaging.preprocess import preprocess_for
from gradcam_nb.samples import efficientnet, photos

pytestmark = pytest.mark.skipif(not find_spec(efficientnet.PACKAGE), reason="the weights are not installed (gradcam-nb[samples])")

CATS = ("tabby", "tiger cat", "Egyptian cat")
SEEN = {  # what it says of each; whether the whole picture is squashed, or its middle is cut out
    "cat": (CATS, False),
    "coffee": (("espresso",), False),
    "photographer": (("tripod",), False),
    "pagoda": (("palace",), False),
    "flower": (("daisy",), False),  # it is a dahlia, which ImageNet does not know
    "officer": (("military uniform",), True),
}


def peak_of(e):
    """Where on the picture the map is highest, in its pixels."""
    row, column = e.summary()["peak"]
    left, top, right, bottom = e.region
    height, width = e.heat_map.shape
    return left + (column + 0.5) / width * (right - left), top + (row + 0.5) / height * (bottom - top)


@pytest.mark.parametrize("name", SEEN)
def test_it_sees_what_is_there_and_where(name):
    classes, whole = SEEN[name]
    network = load_model("efficientnet-lite0")
    preprocess = preprocess_for(network)
    e = explain(f"photo:{name}", preprocess=replace(preprocess, resize="squash", crop_pct=1.0) if whole else preprocess)
    assert e.model == "efficientnet-lite0"
    assert e.target.name in classes
    x, y = peak_of(e)
    left, top, right, bottom = photos.PHOTOS[name].box
    assert left <= x <= right
    assert top <= y <= bottom


def by_hand():
    """The package's own file, tensor after tensor, in timm's network."""
    state = torch.load(Path(find_spec(efficientnet.PACKAGE).origin).parent / "models/efficientnet-lite0-57934424.pth", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    for (name, there), given in zip(model.state_dict().items(), state.values()):
        assert there.shape == given.shape, name
        there.copy_(given)
    return model.eval()


def test_the_weights_are_the_packages(tmp_path, monkeypatch):
    x = torch.randn(2, 3, 96, 128)
    expected = by_hand()(x)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for _ in range(2):  # from the package, and from the cache
        torch.testing.assert_close(load_model("efficientnet-lite0")(x), expected)
    (copied,) = (tmp_path / "gradcam_nb").iterdir()
    assert copied.suffix == ".safetensors"


def test_without_the_package_its_copy_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    load_model("efficientnet-lite0")
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    assert efficientnet.has_weights()
    load_model("efficientnet-lite0")
    (copied,) = (tmp_path / "gradcam_nb").iterdir()
    copied.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="pip install 'gradcam-nb"):
        load_model("efficientnet-lite0")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (taken := tmp_path / "taken").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(taken))
    with pytest.warns(UserWarning, match="they are read anew each time"):
        load_model("efficientnet-lite0")


def fill(folder, start):
    torch.set_num_threads(1)
    torch.hub.get_dir = lambda: folder
    start.wait()
    return efficientnet._digest(load_model("efficientnet-lite0").state_dict())


def test_two_processes_may_fill_the_cache_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        start = manager.Barrier(2)
        assert set(pool.starmap(fill, [(str(tmp_path), start)] * 2)) == {efficientnet._NUMBERS}
    (copied,) = (tmp_path / "gradcam_nb").iterdir()
    assert not copied.name.startswith(".")


def test_the_default_model_fits_the_picture(monkeypatch):
    assert default_model("scene:3") == "scenes-cnn"
    assert default_model("cat.jpg") == default_model("photo:cat") == default_model(photos.photo("cat")) == "efficientnet-lite0"
    assert explain("scene:3").model == "scenes-cnn"
    assert explain(photos.photo("coffee")).target.name == "espresso"
    monkeypatch.setattr("gradcam_nb.ask.has_weights", lambda: False)
    assert explain("scene:3").model == "scenes-cnn"
    with pytest.raises(ValueError, match="pass a model, or pip install"):
        explain("photo:cat")
    assert explain("photo:cat", "scenes-cnn", preprocess=Preprocess((128, 128))).model == "scenes-cnn"


@pytest.mark.parametrize("name", photos.PHOTOS)
def test_each_photo_has_its_licence(name):
    one = photos.PHOTOS[name]
    assert one.licence in ("CC0", "public domain", "CC BY 2.0")
    assert one.author and one.origin.startswith("https://")
    picture = photos.photo(name)
    left, top, right, bottom = one.box
    assert 0 <= left < right <= picture.width
    assert 0 <= top < bottom <= picture.height
