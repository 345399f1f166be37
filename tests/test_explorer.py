"""The explorer without a browser: what a click would do, a trait does; every task, every way to bring a picture."""

import io
import os
import shutil
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import gradcam_nb
from gradcam_nb import explain, explore, list_methods, targets
from gradcam_nb.core.cam import BaseCAM
from gradcam_nb.samples.efficientnet import has_weights
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import CLASSES, TEST, scene
from gradcam_nb.widgets.explorer import Explorer
from gradcam_nb.widgets.questions import questions
from gradcam_nb.widgets.session import Session


def opened(*args, **how):
    panel = explore(*args, **how)
    panel.worker.wait()
    assert panel.explanation is not None
    assert panel.error.value.count("<div") == panel.error.value.count("blank heat map")  # nothing else is said
    return panel


def same_map(place, panel):
    """The code, run where `place` has what it names, gives the panel's map."""
    exec(panel.copy.code.value, place)
    torch.testing.assert_close(place["explanation"].heat_map, panel.explanation.heat_map, rtol=0, atol=1e-5)


class Boxes(nn.Module):
    """A detector: one box round the brightest place, one of fixed size."""

    transform = SimpleNamespace()

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.classes = ["nothing", "thing", "other"]

    def forward(self, x):
        seen = self.body(x)
        shift = seen.mean((1, 2, 3))
        boxes = torch.tensor([[10.0, 10, 50, 50], [20, 20, 30, 30]])
        labels = torch.tensor([1, 2])
        return [dict(boxes=boxes + 0.1 * s, labels=labels, scores=torch.stack([s.sigmoid(), s.sigmoid() / 2])) for s in shift]


def test_first_picture_is_what_explain_gives():
    panel = opened()
    assert torch.equal(panel.explanation.heat_map, explain("scene:3").heat_map)
    assert np.asarray(Image.open(io.BytesIO(panel.shown[0].value))).shape == (128, 128, 3)
    same_map({}, panel)


def test_all_classes_are_listed_the_likeliest_first():
    panel = opened()
    asked = panel.session.questions(0)
    assert [one["label"] for one in panel.target.options] == [one.label for one in asked]
    assert len(asked) == 12
    shares = [one["share"] for one in panel.target.options]
    assert shares == sorted(shares, reverse=True)
    assert 0 <= shares[-1] <= shares[0] <= 1
    panel.target.value = [asked[1].code]
    panel.worker.wait()
    assert panel.setting.asked.label == asked[1].label


def test_layers_are_listed_in_order_and_the_dead_are_grey():
    panel = opened()
    names = [layer.name for layer in panel.session.layers]
    assert [option["value"] for option in panel.layer.options] == names
    (suggested,) = [option for option in panel.layer.options if option["value"] == panel.session.suggested]
    assert not suggested["disabled"]
    grey = {option["value"] for option in panel.layer.options if option["disabled"]}
    assert {"fc", "global_pool"} <= grey
    assert "layer2" not in grey


@pytest.mark.parametrize("name", sorted(name for name, item in list_methods().items() if issubclass(item, BaseCAM)))
def test_every_method_gives_a_map_or_plain_words(name):
    panel = opened()
    panel.method.value = [name]
    if panel.worker.busy and "many runs" in next(one["group"] for one in panel.method.options if one["value"] == name):
        panel.worker.stop()
    panel.worker.wait()
    if panel.setting.method != name:
        assert (panel.error.value.count("<div") == 1 or "stopped" in panel.status.value) != (name in grey(panel))
        assert panel.method.value == [panel.setting.method]  # the list says what is shown
    assert "Traceback" not in panel.error.value
    assert "it failed" not in panel.error.value
    panel.method.value = ["HiResCAM"]
    panel.worker.wait()
    assert panel.setting.method == "HiResCAM"
    assert panel.error.value == ""


def test_several_layers_are_fused():
    panel = opened()
    assert panel.fusion.layout.display == "none"
    panel.layer.value = ["layer3", "layer4"]
    panel.fusion.value = "max"
    panel.worker.wait()
    assert panel.fusion.layout.display is None
    torch.testing.assert_close(panel.explanation.heat_map, explain("scene:3", layer=["layer3", "layer4"], fusion="max").heat_map)
    same_map({}, panel)


def test_smoothing():
    panel = opened()
    panel.aug.value = panel.eigen.value = True
    panel.worker.wait()
    torch.testing.assert_close(panel.explanation.heat_map, explain("scene:3", aug_smooth=True, eigen_smooth=True).heat_map)
    same_map({}, panel)


def test_path_upload_and_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray((scene(TEST + 9).image.permute(1, 2, 0).numpy() * 255).astype("uint8")).resize((300, 200))
    picture.save("mine.png")
    panel = opened()
    panel.path.value = "mine.png"
    panel.worker.wait()
    assert panel.session.pictures[0].size == (300, 200)
    same_map({}, panel)
    from_path = panel.explanation.heat_map
    panel.sample.value = "scene:5"
    panel.worker.wait()
    assert panel.session.sources == ["'scene:5'"]
    content = memoryview((tmp_path / "mine.png").read_bytes())
    panel.upload.value = [dict(name="mine.png", type="image/png", size=1, content=content, last_modified=datetime.now())]
    panel.worker.wait()
    assert torch.equal(panel.explanation.heat_map, from_path)
    same_map({}, panel)
    assert panel.session.sources == [repr("uploads/mine.png")]  # kept, so that the code runs
    panel.path.value = "theirs.png"
    panel.worker.wait()
    assert "theirs.png" in panel.error.value
    assert torch.equal(panel.explanation.heat_map, from_path)
    assert (panel.sample.value, panel.path.value) == ("", "uploads/mine.png")  # what is open, not what was tried
    panel.sample.value = "scene:5"
    panel.worker.wait()
    assert (panel.sample.value, panel.path.value) == ("scene:5", "")


def test_another_model_and_back():
    own = load("scenes-cnn")
    panel = opened(own, "scene:4")
    assert panel.model.value == "your model"
    same_map({"model": own}, panel)
    before = panel.explanation.heat_map
    panel.model.value = "scenes-vit"
    panel.worker.wait()
    assert panel.session.model == "scenes-vit"
    assert panel.session.sources == ["'scene:4'"]
    same_map({}, panel)
    panel.method.value = ["AttentionRollout"]
    panel.worker.wait()
    assert panel.setting.method == "AttentionRollout"
    assert panel.error.value == ""
    panel.method.value = ["GradCAM"]
    panel.model.value = "your model"
    panel.worker.wait()
    assert panel.session.network is own
    assert torch.equal(panel.explanation.heat_map, before)
    panel.model.value = "resnet5000"
    panel.worker.wait()
    assert "resnet5000" in panel.error.value
    assert panel.model.value == "your model"
    assert panel.session.network is own


@pytest.mark.skipif(not has_weights(), reason="the weights are not installed (gradcam-nb[samples])")
def test_the_model_goes_with_the_picture_until_one_is_chosen(monkeypatch):
    panel = opened()
    assert "photo:coffee" in [name for _, name in panel.sample.options]
    panel.sample.value = "photo:coffee"
    panel.worker.wait()
    assert panel.model.value == panel.session.model == "efficientnet-lite0"
    assert panel.setting.asked.label.startswith("espresso")
    same_map({}, panel)
    panel.sample.value = "scene:5"
    panel.worker.wait()
    assert panel.model.value == panel.session.model == "scenes-cnn"
    panel.model.value = "scenes-vit"
    panel.worker.wait()
    panel.sample.value = "photo:cat"
    panel.worker.wait()
    assert panel.model.value == panel.session.model == "scenes-vit"
    panel = opened()
    monkeypatch.setattr("gradcam_nb.ask.has_weights", lambda: False)
    before = panel.session
    panel.sample.value = "photo:cat"
    panel.worker.wait()
    assert "pass a model, or pip install" in panel.error.value
    assert panel.session is before


def grey(panel):
    return {one["value"] for one in panel.method.options if one["disabled"]}


ATTENTION = {"AttentionRelevance", "AttentionRollout", "GradECLIP", "LeGrad"}


@pytest.mark.parametrize(
    "model, expected",
    [
        ("scenes-cnn", {*ATTENTION, "DRISE"}),
        ("scenes-vit", {"CAM", "DRISE"}),
        ("scenes-unet", {*ATTENTION, "CAM", "DRISE", "FinerCAM", "ShapleyCAM"}),
    ],
)
@pytest.mark.filterwarnings("ignore:blank heat map")
def test_what_cannot_explain_is_grey_and_all_else_explains(model, expected):
    panel = opened(model, "scene:3")
    assert grey(panel) == expected
    assert all(one["label"] == one["value"] or one["value"] in expected for one in panel.method.options)
    session = panel.session
    for one in panel.method.options:
        if not one["disabled"] and "seconds to minutes" not in one["group"]:
            session.explain(session.setting(method=one["value"]))
    for name in expected - {"DRISE"}:  # which takes any model for a detector of one box
        with pytest.raises(ValueError):
            session.explain(session.setting(method=name))


def test_a_method_that_serves_no_longer_gives_way():
    panel = opened("scenes-vit", "scene:3")
    panel.method.value = ["LeGrad"]
    panel.worker.wait()
    assert panel.setting.method == "LeGrad"
    assert "layer" not in panel.copy.code.value
    assert panel.shown[1].alt != panel.shown[2].alt == "LeGrad"  # it looks at no layer of the list, so none is named
    same_map({}, panel)
    panel.model.value = "scenes-cnn"
    panel.worker.wait()
    assert panel.method.value == [panel.setting.method] == ["GradCAM"]
    assert panel.error.value == ""


def test_batch_of_pictures():
    images = torch.stack([scene(TEST + i).image for i in (3, 4, 5)])
    panel = opened(load("scenes-cnn"), images)
    assert panel.picture.max == 2
    assert panel.picture.layout.display is None
    panel.picture.value = 2
    panel.worker.wait()
    assert panel.setting.picture == 2
    same_map({"model": panel.session.network, "images": images}, panel)
    assert explore().picture.layout.display == "none"


def test_segmentation_pick_a_class_on_the_picture():
    panel = opened("scenes-unet", "scene:3", names=["background", *CLASSES])
    plane = panel.session.output(0)[0].argmax(0)
    category = next(i for i in plane.unique().tolist() if i)
    row, column = (plane == category).nonzero()[0].tolist()
    panel.shown[0].clicked = [(column + 0.5) / plane.shape[1], (row + 0.5) / plane.shape[0], 1]
    panel.worker.wait()
    assert panel.setting.asked.code == f"SemanticSegmentationTarget({category})"
    assert CLASSES[category - 1] in panel.setting.asked.label
    panel.shown[1].over = panel.shown[0].clicked[:2]
    assert CLASSES[category - 1] in panel.reading.value
    assert "heat" in panel.reading.value
    same_map({}, panel)


def test_another_picture_keeps_the_model_and_the_names():
    panel = opened("scenes-unet", "scene:3", names=["background", *CLASSES])
    network = panel.session.network
    panel.sample.value = "scene:6"
    panel.worker.wait()
    assert panel.session.network is network
    assert panel.session.model == "scenes-unet"
    assert panel.target.options[0]["label"].split(" (")[0] in CLASSES
    assert any(one["label"].startswith("background") for one in panel.target.options)
    same_map({}, panel)
    panel.model.value = "scenes-cnn"
    panel.worker.wait()
    assert panel.target.options[0]["label"].split(" (")[0] in CLASSES
    panel.sample.value = "scene:2"
    panel.worker.wait()
    assert panel.session.model == "scenes-cnn"
    assert panel.session.sources == ["'scene:2'"]


def test_detection_pick_a_box_on_the_picture():
    torch.manual_seed(0)
    model, pre = Boxes().eval(), Session("scenes-cnn").preprocess(0)
    picture = Image.fromarray((scene(TEST + 3).image.permute(1, 2, 0).numpy() * 255).astype("uint8")).resize((256, 256))
    panel = opened(model, picture, preprocess=pre)
    assert [option["label"].split()[0] for option in panel.target.options] == ["thing", "other"]
    plain = np.asarray(Image.open(io.BytesIO(panel.shown[0].value)))
    assert (panel.setting.method, panel.fusion.value) == ("HiResCAM", "sum")  # as the guide on detectors says
    panel.shown[0].clicked = [25 / 128, 25 / 128, 1]
    panel.worker.wait()
    assert panel.setting.asked.label.startswith("other")
    assert (np.asarray(Image.open(io.BytesIO(panel.shown[0].value))) != plain).any()
    box = panel.session.box(0, panel.setting.asked)
    assert box == pytest.approx((40, 40, 60, 60), abs=2)
    same_map({"model": model, "image": picture}, panel)


@pytest.mark.parametrize("name", ["ssdlite", "lraspp"])
def test_torchvision_as_it_is(name):
    """A detector of torchvision's is given the picture in its own size; a segmenter is asked about what it sees."""
    from torchvision.models import detection, segmentation

    torch.manual_seed(0)
    options = dict(weights=None, weights_backbone=None, num_classes=5)
    model = (detection.ssdlite320_mobilenet_v3_large if name == "ssdlite" else segmentation.lraspp_mobilenet_v3_large)(**options).eval()
    if name == "ssdlite":
        model.score_thresh, model.detections_per_img = 0.0, 6
    picture = Image.fromarray((scene(TEST + 3).image.permute(1, 2, 0).numpy() * 255).astype("uint8")).resize((320, 240))
    panel = opened(model, picture)
    if name == "ssdlite":
        assert panel.session.region(0) == (0, 0, 320, 240)
    else:
        assert "of the picture" in panel.setting.asked.label
    same_map({"model": model, "image": picture}, panel)


def test_nothing_is_a_traceback(monkeypatch):
    panel = opened()
    monkeypatch.setattr(panel.session, "asked_at", lambda *_: 1 / 0)
    panel.shown[0].over = [0.5, 0.5]
    assert "ZeroDivisionError" in panel.error.value


def test_a_target_of_ones_own():
    target = {"triangles": lambda output: output[6:9].sum()}
    panel = opened(targets=target)
    assert panel.target.options[0]["label"] == "triangles"
    same_map({"targets": target}, panel)


def test_large_picture_is_painted_quickly_and_saved_whole(tmp_path):
    picture = Image.effect_noise((3000, 2000), 60).convert("RGB")
    panel = opened(load("scenes-cnn"), picture)
    assert max(Image.open(io.BytesIO(panel.shown[1].value)).size) <= 400
    panel.save.folder.value = str(tmp_path / "deep" / "folder")
    panel.save.save()
    assert Image.open(tmp_path / "deep/folder/explanation_overlay.png").size == (3000, 2000)


def test_stop_leaves_the_model_as_it_was():
    model = load("scenes-cnn").train()
    before = threading.active_count()  # tests in this process before this one may have left some
    panel = opened(model, "scene:3")
    panel.method.value = ["SSCAM"]
    while panel.worker.busy and not panel.bar.value:
        panel.worker.deliver()
    panel.stop.click()
    panel.worker.wait()
    assert "stopped" in panel.status.value
    assert panel.error.value == ""  # it was asked for
    assert panel.method.value == [panel.setting.method] == ["GradCAM"]
    panel.method.value = ["SSCAM"]  # the same again
    assert panel.worker.busy
    panel.worker.stop()
    panel.worker.wait()
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert threading.active_count() < before + 20


def test_a_program_may_end_while_a_method_runs():
    code = "from gradcam_nb import explore; panel = explore(); panel.worker.wait(); panel.method.value = ['SSCAM']"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_blank_map_says_why():
    panel = opened()
    panel.session.kept.clear()
    panel.target.value = [next(one.code for one in panel.session.questions(0) if "dotted star" in one.label)]
    panel.method.value = ["GradCAM"]
    panel.layer.value = ["layer4.0.downsample"]
    panel.worker.wait()
    assert panel.setting.layers == ("layer4.0.downsample",)
    assert ("blank heat map" in panel.error.value) == (panel.explanation.heat_map.max() == 0)


def test_importing_the_package_loads_no_widgets():
    heavy = ("ipywidgets", "anywidget", "matplotlib", "pandas")
    code = f"import sys, gradcam_nb; gradcam_nb.explore; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_explorer_is_what_explore_gives():
    assert isinstance(explore(), Explorer)


TOP_TWO = """
class TopTwoTarget:
    "The scores of the two likeliest classes, added."

    def __init__(self, first, second):
        self.first, self.second = first, second

    def __call__(self, output):
        return output[self.first] + output[self.second]

    @classmethod
    def offers(cls, output):
        if getattr(output, "ndim", 0) != 2:
            return []
        first, second = output[0].topk(2).indices.tolist()
        return [dict(target=cls(first, second), said="the two likeliest")]

    def __repr__(self):
        return f"TopTwoTarget({self.first}, {self.second})"
"""

SEEN = """
from gradcam_nb import explore

panel = explore()
panel.worker.wait()
first = panel.setting.asked.code
(one,) = [option for option in panel.target.options if option["label"] == "the two likeliest"]
panel.target.value = [one["value"]]
panel.worker.wait()
place = {}
exec(panel.copy.code.value, place)
same = (place["explanation"].heat_map - panel.explanation.heat_map).abs().max() < 1e-5
print(first, len(panel.target.options), panel.setting.asked.label, bool(same))
print(panel.copy.code.value.splitlines()[0])
"""


def test_a_new_target_is_a_module_and_a_line_in_the_list(tmp_path):
    """In a copy of the package: what its `offers` says stands in the explorer, and the copied code runs."""
    package = tmp_path / "gradcam_nb"
    shutil.copytree(Path(gradcam_nb.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "targets/top_two.py").write_text(TOP_TWO)
    listed = package / "targets/__init__.py"
    text = listed.read_text().replace("\n]\n", '\n    "TopTwoTarget",\n]\n')
    listed.write_text(f"from .top_two import TopTwoTarget\n{text}")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SEEN], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["2 13 the two likeliest True", "from gradcam_nb import explain, TopTwoTarget"]


def test_every_offer_is_python_that_makes_it():
    """Whoever is in the list of targets: its questions have labels of their own, and their code makes the same target."""
    planes = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    found = [dict(boxes=torch.tensor([[1.04, 2, 30, 40.06]]), labels=torch.tensor([1]), scores=torch.tensor([0.5]))]
    for output in (planes[:, :, 0, 0], planes, found, planes[:, 0]):
        asked = questions(nn.Identity(), output)
        assert len({one.label for one in asked}) == len(asked)
        for one in asked:
            assert repr(eval(one.code, vars(targets))) == one.code == repr(one.target)


def test_the_last_resort_is_offered_where_nothing_else_is():
    kinds = {one.kind for one in questions(nn.Identity(), torch.ones(1, 3))}
    assert kinds == {targets.ClassifierOutputTarget}
    assert [one.kind for one in questions(nn.Identity(), torch.ones(1, 3, 5))] == [targets.RawScoresOutputTarget]


@pytest.mark.parametrize("several", [False, True])
def test_probabilities_of_classes_that_exclude_each_other_or_not(several):
    model = nn.Identity()
    model.multi_label = several
    logits = torch.tensor([[1.0, 3.0, -2.0]])
    shares = logits[0].sigmoid() if several else logits[0].softmax(0)
    asked = questions(model, logits, ["cat", "dog", "hen"])
    assert [one.label for one in asked] == [f"{name} ({shares[i]:.1%})" for name, i in (("dog", 1), ("cat", 0), ("hen", 2))]


def test_a_picture_that_cannot_be_explained_stands_alone():
    """No map of another picture stands beside it, and nothing can be measured, copied or saved of it."""
    panel = opened()
    code = panel.copy.code.value

    def fails(setting):
        raise ValueError("no map today")

    session = Session("scenes-cnn", "scene:6")
    session.explain = fails
    panel.session = session
    panel.opened(session)
    panel.worker.wait()
    assert "no map today" in panel.error.value
    assert panel.explanation is panel.at_hand is None
    assert (panel.shown[1].value, panel.shown[2].value) == (b"", b"")
    assert panel.shown[0].value
    for act in (panel.compare.compare, panel.measure.measure, panel.save.save):
        panel.say("")
        act()
        assert panel.error.value.count("<div") == 1
    assert panel.copy.code.value == code


def test_compare_opens_what_is_clicked_and_no_cell_takes_the_others(tmp_path, monkeypatch):
    panel = opened("scenes-vit", "scene:3")
    names = [layer.name for layer in panel.session.serving]
    assert set(panel.compare.layers.value) <= set(names)
    assert len(panel.compare.layers.value) == 4
    panel.compare.methods.value = ["GradCAM", "CAM", "LeGrad", "LayerCAM"]  # CAM is grey: this network pools a token
    panel.compare.compare()
    panel.worker.wait()
    found = panel.compare.found
    layers = panel.compare.layers.value
    assert all(isinstance(heat, str) and "CAM" in heat for heat in found["CAM"].values())
    assert list(found["LeGrad"]) == ["no layer"]
    for method in ("GradCAM", "LayerCAM"):
        assert list(found[method]) == layers
        for layer, heat in found[method].items():
            torch.testing.assert_close(heat, explain("scene:3", "scenes-vit", method=method, layer=layer).heat_map, rtol=0, atol=1e-5)
    panel.compare.table.clicked = ["LayerCAM", layers[0], "1"]
    panel.worker.wait()
    assert (panel.setting.method, panel.setting.layers) == ("LayerCAM", (layers[0],))
    assert (panel.method.value, panel.layer.value) == (["LayerCAM"], [layers[0]])
    torch.testing.assert_close(panel.explanation.heat_map, found["LayerCAM"][layers[0]], rtol=0, atol=1e-5)
    panel.compare.table.clicked = ["LeGrad", "no layer", "2"]
    panel.worker.wait()
    assert panel.setting.method == "LeGrad"
    panel.save.folder.value = str(tmp_path)
    panel.compare.write()
    assert min(Image.open(tmp_path / "comparison.png").size) > 500


@pytest.mark.parametrize(
    "model, ends", [("resnet18", 4), ("mobilenetv2_100", 4), ("swin_tiny_patch4_window7_224", 4), ("vit_tiny_patch16_224", 4)]
)
def test_compare_begins_with_the_ends_of_the_stages(model, ends):
    import timm

    torch.manual_seed(0)
    panel = opened(timm.create_model(model).eval(), Image.effect_noise((224, 224), 60).convert("RGB"))
    chosen = panel.compare.layers.value
    assert len(chosen) == ends
    assert chosen[-1] == panel.session.suggested
    if model == "resnet18":
        assert chosen == ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("metric", ["ROADCombined", "ParameterRandomisation", "MaxSensitivity", "DropInConfidence", "Complexity"])
def test_metrics_take_detectors(metric):
    from torchvision.models import detection

    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    model.score_thresh, model.detections_per_img = 0.0, 6
    panel = opened(model, Image.effect_noise((320, 240), 60).convert("RGB"))
    panel.measure.metric.value = metric
    panel.measure.measure()
    panel.worker.wait()
    assert panel.measure.rows, panel.error.value
    assert np.isfinite(panel.measure.rows[0][1])


def test_the_whole_picture_is_shown_where_that_is_asked_for():
    import timm

    torch.manual_seed(0)
    picture = Image.effect_noise((300, 200), 60).convert("RGB")
    panel = opened(timm.create_model("resnet10t").eval(), picture)
    assert panel.session.region(0)[0] > 0
    for whole, region in (("squash", (0, 0, 300, 200)), ("pad", (0, -50, 300, 250))):
        panel.fit.value = whole
        panel.worker.wait()
        assert panel.session.region(0) == pytest.approx(region, abs=2)
        assert f"whole={whole!r}" in panel.copy.code.value
        same_map({}, panel)
    panel.fit.value = ""
    panel.worker.wait()
    assert "whole" not in panel.copy.code.value


def test_a_segmenter_sees_all_of_the_picture():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    panel = opened(model, Image.effect_noise((300, 200), 60).convert("RGB"))
    assert panel.session.region(0) == pytest.approx((0, 0, 300, 200), abs=1)
    assert panel.fit.value == "squash"
    same_map({}, panel)


def test_a_data_set(monkeypatch):
    class Scenes(torch.utils.data.Dataset):
        read = []

        def __len__(self):
            return 50_000

        def __getitem__(self, i):
            self.read.append(i)
            return scene(TEST + 3 + i).image, i

    data = Scenes()
    panel = opened(None, data) if has_weights() else opened("scenes-cnn", data)
    assert panel.picture.max == 49_999
    assert set(data.read) == {0}
    panel = opened("scenes-cnn", data)
    panel.picture.value = 2
    panel.worker.wait()
    assert set(data.read) == {0, 2}
    torch.testing.assert_close(panel.explanation.heat_map, explain("scene:5", "scenes-cnn").heat_map, rtol=0, atol=1e-5)
    same_map({}, panel)


def test_what_was_handed_over_is_there_for_the_copied_code():
    """In the same kernel the code runs as it was pasted; in another it says which line to change."""
    panel = opened(
        load("scenes-cnn"), [Image.effect_noise((128, 128), 60).convert("RGB")] * 2, targets={"two": lambda output: output[:2].sum()}
    )
    panel.picture.value = 1
    panel.worker.wait()
    same_map({}, panel)
    code = panel.copy.code.value
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: explored: no explorer number")


def test_a_detector_that_finds_nothing_says_how_it_was_asked():
    class Finds(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            self.body(x)
            return [dict(boxes=torch.empty(0, 4), labels=torch.empty(0, dtype=torch.long), scores=torch.empty(0)) for _ in x]

    with pytest.raises(ValueError, match=r"finds nothing.*it was shown the picture as Preprocess\(size=.*pass preprocess="):
        explore(Finds(), "scene:3")


@pytest.mark.data
def test_real_networks_at_first_touch(data):
    """A detector sees the picture in a way in which it finds things; a segmenter is first asked about what is there."""
    import demo_models

    both = str(data / "images/misc/both.png")
    panel = opened(demo_models.yolox_nano_coco(data / "models"), both, names=demo_models.COCO_CLASSES)
    assert [one["label"].split()[0] for one in panel.target.options] == ["dog", "cat"]
    assert panel.session.view[0] == "in its own size, 0 to 1"
    assert "in its own size, 0 to 1" in panel.shown[0].alt
    assert panel.setting.method == "HiResCAM"
    assert panel.setting.layers[0].startswith("dark5")  # the backbone's end, and no spot of the head's
    for asked in panel.session.questions(0):
        panel.target.value = [asked.code]
        panel.worker.wait()
        left, top, right, bottom = map(int, asked.box)
        heat = panel.explanation.heat_map
        inside = heat[top:bottom, left:right].sum() / heat.sum()
        assert inside > 1.5 * (right - left) * (bottom - top) / heat.numel()
        assert (heat[top:bottom, left:right] > 0.2).float().mean() > 0.1
    assert "preprocess=Preprocess(" in panel.copy.code.value
    same_map({}, panel)
    panel.measure.metric.value = "DropInConfidence"
    panel.measure.measure()
    panel.worker.wait()
    assert panel.measure.rows, panel.error.value
    panel = opened(demo_models.deeplabv3_mobilenet_v2_voc(data / "models"), both, names=demo_models.VOC_CLASSES)
    assert [one["label"].split()[0] for one in panel.target.options[:3]] == ["dog", "cat", "background"]
    assert panel.session.region(0) == pytest.approx((0, 0, 224, 224), abs=1)
    same_map({}, panel)
    for name, first in (("mobilenet_v2_imagenet", "bull mastiff"), ("vit_tiny_imagenet", "bull mastiff")):
        panel = opened(getattr(demo_models, name)(data / "models"), both)
        assert panel.setting.asked.label.startswith(first)
        same_map({}, panel)
