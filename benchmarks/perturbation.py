"""The methods that run the model again and again: their time beside the passes that they make, their memory beside one batch."""

import io
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec

import torch

import gradcam_nb
from benchmarks.harness import Case
from benchmarks.network import forward, model_and_input
from gradcam_nb import AblationCAM, ScoreCAM


def _some(channels):
    return lambda t: t[:, :channels]


def passes(channels, size):
    """As many rows as ScoreCAM asks, through the plain model: those of the channels that are not constant."""
    model, x = model_and_input(1)
    cam = ScoreCAM(model, model.layer4[-1], _some(channels), batch_size=size, progress=False)
    run = cam.run(x, 5)
    (call,) = run.calls(model.layer4[-1])
    n = int(cam.chosen(run, call, [run.targets]).sum())
    rows = x.repeat(n, 1, 1, 1).split(size)

    def call():
        with torch.inference_mode():
            for some in rows:
                model(some)

    return call


def their_score_cam(channels, size):
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = model_and_input(1)
    cam = ScoreCAM(model=model, target_layers=[model.layer4[-1]], reshape_transform=_some(channels))
    cam.batch_size = size

    def call():
        with redirect_stderr(io.StringIO()):
            cam(x, [ClassifierOutputTarget(5)])

    return call


def ours(name, layer="layer4.2", channels=None, **how):
    """One of our methods on one picture."""
    model, x = model_and_input(1)
    transform = None if channels is None else _some(channels)
    method = getattr(gradcam_nb, name)
    return partial(method(model, layer, transform, progress=False, **how), x, 5)


def _halves(model):
    """All but the last block and the head, and these."""
    first = [model.conv1, model.bn1, model.relu, model.maxpool]
    stages = [model.layer1, model.layer2, model.layer3, model.layer4[:2]]
    last = [model.layer4[2], model.avgpool, torch.nn.Flatten(), model.fc]
    return torch.nn.Sequential(*first, *stages), torch.nn.Sequential(*last)


def tail_passes():
    """What AblationCAM at layer4[-2] cannot do without: 2,048 passes of the last block and the head."""
    model, x = model_and_input(1)
    stem, tail = _halves(model)
    with torch.inference_mode():
        rows = stem(x).repeat(AblationCAM.most_rows, 1, 1, 1)

    def call():
        with torch.inference_mode():
            for _ in range(2048 // len(rows)):
                tail(rows)

    return call


def tail_batch(size):
    """One batch of the last block and the head, behind one pass of the rest."""
    model, x = model_and_input(1)
    stem, tail = _halves(model)

    def call():
        with torch.inference_mode():
            tail(stem(x).repeat(size, 1, 1, 1))

    return call


def descent():
    """One picture there and back to its input: what OptiCAM does again and again."""
    model, x = model_and_input(1)

    def call():
        torch.autograd.grad(model(x.requires_grad_())[0, 5], x)

    return call


def boxes_of(model):
    """ResNet-50 as a detector of one box: what DRISE needs, at this network's cost."""

    def ask(x):
        box = torch.tensor([[40.0, 40, 180, 180]], device=x.device)
        return [dict(boxes=box, labels=s.argmax()[None], scores=s.softmax(0).max()[None]) for s in model(x)]

    return ask


def d_rise(size):
    model, x = model_and_input(1)
    method = gradcam_nb.DRISE(boxes_of(model), n_masks=6 * size, batch_size=size, progress=False)
    return partial(method, x)


def _peak(batch, baseline, **methods):
    """The memory of each method beside that of one batch."""
    group = f"peak memory, {batch}"
    first = Case(group, batch, baseline, memory=True, rounds=1)
    return [first, *(Case(group, name, prepare, 1.2, memory=True, rounds=1) for name, prepare in methods.items())]


def _score_cam():
    """ScoreCAM with all channels beside its bare passes, and the other library's where it is installed."""
    group = "ScoreCAM, 2,048 channels"
    rows = [
        Case(group, "forward, every channel", partial(passes, 2048, 64), in_turns=True),
        Case(group, "ScoreCAM", partial(ours, "ScoreCAM", channels=2048, batch_size=64), 1.05, in_turns=True),
    ]
    if find_spec("pytorch_grad_cam"):
        theirs = partial(their_score_cam, 2048, 64)
        rows.append(Case(group, "PyPI grad-cam: ScoreCAM", theirs, in_turns=True))
    return rows


PERTURBATION = [
    Case("AblationCAM, batch 1", "forward", partial(forward, 1)),
    Case("AblationCAM, batch 1", "AblationCAM, layer4[-1]", partial(ours, "AblationCAM"), 6.0),
    Case("AblationCAM, batch 1", "ReciproCAM, layer4[-1]", partial(ours, "ReciproCAM"), 3.0),
    Case("AblationCAM, layer4[-2]", "2,048 tail passes", tail_passes, rounds=3),
    Case("AblationCAM, layer4[-2]", "AblationCAM, layer4[-2]", partial(ours, "AblationCAM", "layer4.1"), 1.15, rounds=3),
    *_score_cam(),
    *_peak(
        "one batch of 64",
        partial(forward, 64),
        **{
            "ScoreCAM": partial(ours, "ScoreCAM", batch_size=64, channels=384),
            "SSCAM": partial(ours, "SSCAM", batch_size=64, channels=96, samples=4),
            "SSCAM, noise on the input": partial(ours, "SSCAM", batch_size=64, channels=96, samples=4, noise="input"),
            "ISCAM": partial(ours, "ISCAM", batch_size=64, channels=128, steps=4),
            "GScoreCAM": partial(ours, "GScoreCAM", batch_size=64, k=384),
            "RISE": partial(ours, "RISE", batch_size=64, n_masks=384),
            "DRISE": partial(d_rise, 64),
        },
    ),
    *_peak(
        "one tail batch of 64",
        partial(tail_batch, 64),
        **{
            "AblationCAM, layer4[-1]": partial(ours, "AblationCAM", batch_size=64),
            "AblationCAM, layer4[-2]": partial(ours, "AblationCAM", "layer4.1", batch_size=64),
            "ReciproCAM, layer4[-1]": partial(ours, "ReciproCAM", batch_size=49),
            "ReciproCAM, layer4[-2]": partial(ours, "ReciproCAM", "layer4.1", batch_size=49),
        },
    ),
    *_peak("one picture there and back", descent, OptiCAM=partial(ours, "OptiCAM", batch_size=1, iterations=10)),
]
