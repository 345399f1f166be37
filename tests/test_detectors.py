"""Detectors: candidates and targets against the detectors' own answers, and where the maps of a real one lie."""

import threading
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import ops
from torchvision.models import detection

from gradcam_nb.core.cam import finish
from gradcam_nb.imaging.read import read_image
from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.methods.hirescam import HiResCAM
from gradcam_nb.targets.before_suppression import BeforeSuppression
from gradcam_nb.targets.box import BoxTarget
from gradcam_nb.targets.candidates import detr_candidates, yolo_candidates, yolov8_candidates
from gradcam_nb.targets.faster_rcnn import FasterRCNNBoxScoreTarget
from gradcam_nb.targets.instance_mask import InstanceMaskTarget

# ---------------------------------------------------------------- torchvision's six families, small and untrained
UNTRAINED = dict(weights=None, weights_backbone=None)
SMALL = dict(min_size=64, max_size=96)
TWO_STAGES = dict(**SMALL, box_score_thresh=0.01, rpn_post_nms_top_n_test=60, box_detections_per_img=20)
FAMILIES = {
    "Faster R-CNN": (detection.fasterrcnn_mobilenet_v3_large_320_fpn, dict(**TWO_STAGES, num_classes=5), "body"),
    "Mask R-CNN": (detection.maskrcnn_resnet50_fpn, dict(**TWO_STAGES, num_classes=5), "body.layer3"),
    "Keypoint R-CNN": (detection.keypointrcnn_resnet50_fpn, dict(**TWO_STAGES, num_classes=2), "body.layer3"),
    "RetinaNet": (detection.retinanet_resnet50_fpn, dict(**SMALL, num_classes=5, score_thresh=0.001, detections_per_img=20), "body.layer3"),
    "SSDlite": (detection.ssdlite320_mobilenet_v3_large, dict(num_classes=5, detections_per_img=20), "features.0"),
    "FCOS": (detection.fcos_resnet50_fpn, dict(**SMALL, num_classes=5, score_thresh=0.001, detections_per_img=20), "body.layer3"),
}
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def built(family):
    torch.manual_seed(0)
    make, how, _ = FAMILIES[family]
    return make(**UNTRAINED, **how).eval()


def surest(found):
    """Of the boxes that have a width and a height: an untrained FCOS also finds boxes without."""
    sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
    return int((sides.amin(1) > 4).nonzero()[0])


def pictures(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@families
def test_every_detection_is_a_candidate(family):
    """With the same box and score; the pictures differ in size, so that each has a scale and a padding of its own."""
    detector, images = built(family), pictures((64, 64), (70, 50))
    with torch.no_grad():
        found, before = detector(images), BeforeSuppression(detector)(images)
    for after, candidates in zip(found, before):
        boxes, scores = candidates["boxes"], candidates["class_scores"]
        count, classes = scores.shape
        if "objectness" in candidates:
            scores = scores * candidates["objectness"][:, None]
        boxes = boxes if boxes.ndim == 3 else boxes[:, None].expand(count, classes, 4)
        assert len(after["boxes"])
        assert count * classes > len(after["boxes"])
        for box, label, score in zip(after["boxes"], after["labels"], after["scores"]):
            apart = (boxes[:, label] - box).abs().amax(1) + 100 * (scores[:, label] - score).abs()
            assert apart.min() < 1e-3


@families
def test_a_candidate_has_the_gradient_of_the_final_score(family):
    detector, (image,) = built(family), pictures((64, 64))
    image.requires_grad_()
    (found,) = detector([image])
    index = surest(found)  # of its class no candidate is surer
    (expected,) = torch.autograd.grad(found["scores"][index], image)
    target = BoxTarget.of({key: value.detach() for key, value in found.items()}, index, what="score")
    (gradient,) = torch.autograd.grad(target(BeforeSuppression(detector)([image])[0]), image)
    assert expected.any()
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@families
def test_explained_in_four_lines(family):
    detector, images = built(family), pictures((64, 64), (64, 64))

    with torch.no_grad():
        found = detector(images)
    cam = HiResCAM(BeforeSuppression(detector), f"detector.backbone.{FAMILIES[family][2]}")
    heat = cam(images, [BoxTarget.of(one, surest(one)) for one in found])

    assert heat.shape == (2, 64, 64)
    assert heat.isfinite().all()
    assert (heat.amax((1, 2)) == 1).all()
    assert heat.min() >= 0
    assert not detector.training
    assert all(p.grad is None for p in detector.parameters())


@pytest.mark.parametrize("family", ["Faster R-CNN", "Mask R-CNN", "Keypoint R-CNN", "RetinaNet"])
def test_the_layer_may_be_left_out(family):
    """And is then one of the backbone's."""
    detector, images = built(family), pictures((64, 64))
    with torch.no_grad():
        found = detector(images)
    cam = HiResCAM(BeforeSuppression(detector))
    heat = cam(images, BoxTarget.of(found[0], surest(found[0])))
    assert heat.shape == (1, 64, 64)
    assert heat.max() == 1
    assert heat.isfinite().all()
    assert cam.target_layers[0] in list(detector.backbone.modules())


def test_a_batch_is_its_pictures_one_by_one():
    detector, images = built("SSDlite"), pictures((64, 64), (64, 64))
    with torch.no_grad():
        found = detector(images)
    cam = HiResCAM(BeforeSuppression(detector), "detector.backbone.features.0")
    targets = [BoxTarget.of(one, 2) for one in found]
    alone = torch.cat([cam([image], target) for image, target in zip(images, targets)])
    torch.testing.assert_close(cam(images, targets), alone, rtol=1e-3, atol=1e-4)


def test_a_detector_in_training_mode_is_explained_as_in_evaluation():
    detector, images = built("SSDlite"), pictures((64, 64))
    with torch.no_grad():
        target = BoxTarget.of(detector(images)[0])
    cam = HiResCAM(BeforeSuppression(detector), "detector.backbone.features.0")
    expected = cam(images, target)
    try:
        cam = HiResCAM(BeforeSuppression(detector.train()), "detector.backbone.features.0")
        torch.testing.assert_close(cam(images, target), expected)
        assert all(module.training for module in detector.modules())
    finally:
        detector.eval()


def test_two_threads_explain_with_one_detector():
    detector, images = built("SSDlite"), pictures((64, 64), (64, 64))
    with torch.no_grad():
        found = detector(images)
    before, together = BeforeSuppression(detector), {}

    def explain(i):
        return HiResCAM(before, "detector.backbone.features.0")([images[i]], BoxTarget.of(found[i]))

    alone = [explain(i) for i in range(2)]
    threads = [threading.Thread(target=lambda i=i: together.update({i: explain(i)})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        torch.testing.assert_close(together[i], alone[i])


def test_the_mask_of_a_mask_rcnn():
    detector, images = built("Mask R-CNN"), pictures((64, 64))
    with torch.no_grad():
        found = detector(images)
    target = InstanceMaskTarget.of(found[0], 1)
    heat = HiResCAM(detector, "backbone.body.layer3")(images, target)
    assert heat.shape == (1, 64, 64)
    assert heat.max() == 1
    mask = found[0]["masks"][1, 0].numpy()
    assert abs(target(found[0]).item() - mask[mask > 0.5].sum()) < 1e-2


# ---------------------------------------------------------------- oracles
def test_faster_rcnn_target_is_that_of_pytorch_grad_cam():
    theirs = pytest.importorskip("pytorch_grad_cam.utils.model_targets").FasterRCNNBoxScoreTarget
    generator, counted = torch.Generator().manual_seed(0), 0
    for _ in range(30):
        corner, side = 60 * torch.rand(12, 2, generator=generator), 20 + 20 * torch.rand(12, 2, generator=generator)
        found = dict(
            boxes=torch.cat([corner, corner + side], 1),
            labels=torch.randint(1, 3, (12,), generator=generator),
            scores=torch.rand(12, generator=generator),
        )
        asked = found["boxes"][:5] + 4 * torch.randn(5, 4, generator=generator)
        for leaf in ("boxes", "scores"):
            found[leaf].requires_grad_()
        for threshold in (0.5, 0.7):
            a = FasterRCNNBoxScoreTarget(found["labels"][:5], asked, threshold)(found)
            b = theirs(found["labels"][:5], asked, threshold)(found)
            torch.testing.assert_close(a.reshape(1), b)
            if not b.requires_grad:
                continue
            counted += 1
            leaves = [found["boxes"], found["scores"]]
            for ours, other in zip(torch.autograd.grad(a, leaves), torch.autograd.grad(b.sum(), leaves)):
                torch.testing.assert_close(ours, other)
    assert counted > 30


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("own_boxes", [False, True])
@pytest.mark.parametrize("objectness", [False, True])
def test_box_target_against_loops(own_boxes, objectness):
    generator, classes = torch.Generator().manual_seed(0), 3
    for _ in range(20):
        shape = (15, classes) if own_boxes else (15,)
        corner = 30 * torch.rand(*shape, 2, generator=generator)
        found = dict(
            boxes=torch.cat([corner, corner + 5 + 20 * torch.rand(*shape, 2, generator=generator)], -1),
            class_scores=torch.rand(15, classes, generator=generator),
            class_logits=torch.randn(15, classes, generator=generator),
        )
        if objectness:
            found["objectness"] = torch.rand(15, generator=generator)
        box = found["boxes"][0].reshape(-1, 4)[0] + 1
        for label in (None, 1):
            best, where = -1, None
            for n, k in product(range(15), range(classes) if label is None else [label]):
                own = found["boxes"][n, k] if own_boxes else found["boxes"][n]
                sure = found["objectness"][n].item() if objectness else 1
                value = iou(box.tolist(), own.tolist()) * found["class_scores"][n, k].item() * sure
                if value > best:
                    best, where = value, (n, k, own)
            n, k, own = where
            score = found["class_scores"][n, k] * (found["objectness"][n] if objectness else 1)
            expected = {"class": found["class_logits"][n, k], "score": score, "coordinates": own.sum(), "top": own[1]}
            if objectness:
                expected["objectness"] = found["objectness"][n]
            for what, value in expected.items():
                torch.testing.assert_close(BoxTarget(box, label, what)(found), value)


def test_candidates_against_torchvisions_conversion():
    rows = torch.rand(9, 12)
    corners = ops.box_convert(rows[:, :4], "cxcywh", "xyxy")
    for candidates in (
        yolo_candidates(rows),
        yolo_candidates((rows, [rows])),
        yolov8_candidates(rows.T),
        detr_candidates(dict(pred_boxes=rows[:, :4], logits=rows[:, 4:])),
    ):
        torch.testing.assert_close(candidates["boxes"], corners)
    on_picture = detr_candidates(dict(pred_boxes=rows[:, :4], pred_logits=rows[:, 4:]), (30, 50))
    torch.testing.assert_close(on_picture["boxes"], corners * torch.tensor([50, 30, 50, 30]))
    torch.testing.assert_close(on_picture["class_scores"].sum(1) + rows[:, 4:].softmax(1)[:, -1], torch.ones(9))


def test_a_detr_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    small = dict(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        num_queries=6,
        num_labels=4,
        **small,
    )
    detr, x = transformers.DetrForObjectDetection(config).eval(), torch.rand(2, 3, 96, 128)
    candidates = partial(detr_candidates, size=(96, 128))
    with torch.no_grad():
        output = detr(x)
    boxes = ops.box_convert(output.pred_boxes[:, 2], "cxcywh", "xyxy") * torch.tensor([128, 96, 128, 96])
    targets = [BoxTarget(box, 1, candidates=candidates) for box in boxes]
    for i, target in enumerate(targets):
        assert target(dict(logits=output.logits[i], pred_boxes=output.pred_boxes[i])) in output.logits[i, :, 1]
    for layer in ("model.encoder", None):
        heat = HiResCAM(detr, layer)(x, targets)
        assert heat.shape == (2, 96, 128)
        assert (heat.amax((1, 2)) == 1).all()


# ---------------------------------------------------------------- a real detector
NECK, BACKBONE = ["p3", "n3", "n4"], ["dark3", "dark4", "dark5"]


@pytest.fixture(scope="module")
def yolox(data):
    """YOLOX-nano as users see it, and with its candidates as the answer."""
    import demo_models

    class Raw(demo_models.YoloxNano):
        forward = demo_models.YoloxNano.raw

    detector, raw = demo_models.yolox_nano_coco(data / "models"), Raw().eval()
    raw.load_state_dict(detector.state_dict())
    return detector, raw


def seen(detector, path):
    """The photo as the network sees it, its size there, the scale, what is found, and which boxes are larger than 96 × 96."""
    pixels = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1) / 255
    scale = min(416 / side for side in pixels.shape[1:])
    h, w = (int(side * scale) for side in pixels.shape[1:])
    x = F.pad(F.interpolate(pixels[None], size=(h, w), mode="bilinear"), (0, 416 - w, 0, 416 - h), value=114 / 255)
    with torch.no_grad():
        (found,) = detector([pixels])
    areas = (found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(1)
    return x, (h, w), scale, found, (areas > 96 * 96).nonzero().flatten().tolist()


def photos(data):
    return [data / "images/misc/both.png", *sorted((data / "images/coco").glob("*.jpg"))]


def test_every_box_of_yolox_is_a_candidate(yolox, data):
    detector, raw = yolox
    x, (h, w), scale, found, _ = seen(detector, photos(data)[1])
    with torch.no_grad():
        output = raw(x)[0]
    assert len(found["boxes"]) > 5
    for i in range(len(found["boxes"])):
        target = BoxTarget.of(dict(found, boxes=found["boxes"] * scale), i, what="score", candidates=yolo_candidates)
        assert abs(target(output) - found["scores"][i]) < 1e-3


def share(heat, box, size):
    """Of a map, in a box a quarter wider and higher; the grey beside the photo does not count."""
    heat, (left, top, right, bottom) = heat[: size[0], : size[1]], box.tolist()
    more_x, more_y = (right - left) / 8, (bottom - top) / 8
    left, top, right, bottom = (max(0, round(edge)) for edge in (left - more_x, top - more_y, right + more_x, bottom + more_y))
    return (heat[top:bottom, left:right].sum() / heat.sum()).item()


def test_where_the_maps_of_a_real_detector_lie(yolox, data):
    """All photos, every box of more than 96 × 96 pixels; what the guide recommends (HiResCAM, `fusion="sum"`), and others."""
    detector, raw = yolox
    shares, covered = {}, []
    for path in photos(data):
        x, size, scale, found, large = seen(detector, path)
        if not large:
            continue
        targets = [BoxTarget(found["boxes"][i] * scale, int(found["labels"][i]), candidates=yolo_candidates) for i in large]
        run = HiResCAM(raw, NECK + BACKBONE).run(x, *targets)
        for one, target in zip(run.each(), targets):
            covered.append((target.box[2:] - target.box[:2]).prod().item() / (size[0] * size[1]))
            for method in (HiResCAM, GradCAM):
                cam = method(raw, run.layers)
                maps = [cam.get_layer_map(one, call) for layer in run.layers for call in one.calls(layer)]
                for place, levels in (("neck", maps[:3]), ("backbone", maps[3:])):
                    for way in ("sum", "mean"):
                        heat = finish(levels, one.size, way)
                        shares.setdefault((method.__name__, place, way), []).append(share(heat[0], target.box, size))
    mean = {key: np.mean(values) for key, values in shares.items()}
    assert len(covered) > 60
    assert 0.15 < np.mean(covered) < 0.25
    assert mean["HiResCAM", "neck", "sum"] >= 0.97
    assert mean["HiResCAM", "backbone", "sum"] >= 0.75
    assert mean["HiResCAM", "neck", "mean"] >= 0.97
    assert mean["HiResCAM", "backbone", "mean"] >= 0.70
    assert max(mean["GradCAM", place, way] for place in ("neck", "backbone") for way in ("sum", "mean")) < 0.4


def test_the_dog_and_the_cat_through_the_public_interface(yolox, data):
    detector, raw = yolox
    x, size, scale, found, large = seen(detector, photos(data)[0])
    for layers, least in ((NECK, 0.97), (BACKBONE, 0.75)):
        for i in large:
            target = BoxTarget.of(dict(found, boxes=found["boxes"] * scale), i, candidates=yolo_candidates)
            assert share(HiResCAM(raw, layers)(x, target, fusion="sum")[0], target.box, size) > least
