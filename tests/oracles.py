"""What tests of several methods share: the papers' steps written slowly in numpy, what a layer gave, and ways to compare."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from gradcam_nb.imaging.preprocess import preprocess_for
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

# What is asked


def asked(name, number=2003):
    """A network of the scenes, a picture as it takes it, and a class that is there."""
    scene = scenes(1, TEST + number)
    return load(f"scenes-{name}"), scene.images * 2 - 1, scene.labels[0].argmax().item()


def dog_and_cat(data, model):
    """The photo of both as a model takes it, its ImageNet classes, and for each of them a name and the box around it."""
    photo = data / "images/misc/both.png"
    drawn = json.loads((data / "annotations/handdrawn_boxes.json").read_text())["boxes"]["misc/both.png"]
    boxes = {b["label"]: b["box"] for b in drawn}
    preprocess = replace(preprocess_for(model), resize="squash", crop_pct=1.0)  # the photo is 224 × 224: given whole
    return preprocess(photo), [243, 281], [(label, boxes[label]) for label in ("dog", "cat")]


# What a layer gave


def on_grid(t):
    """`B × C × H × W` of a layer's output; of a transformer's tokens without the first, which has no place."""
    if t.ndim == 4:
        return t
    side = math.isqrt(t.shape[1] - 1)
    return t[:, 1:].mT.unflatten(2, (side, side))


def as_numpy(t):
    return t.detach().double().numpy()


def graph(model, layer, x, score, laid=on_grid):
    """What a layer gives and the gradient of a score there, from plain autograd: two arrays `B × C × H × W`."""
    kept = []

    def keep(module, args, output):
        kept.append(output)
        return output.clone()  # so that what works in place behind the layer leaves it alone

    handle = model.get_submodule(layer).register_forward_hook(keep)
    output = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(score(output), kept[0])
    return as_numpy(laid(kept[0])), as_numpy(laid(gradient))


# Steps of the papers, for one picture: activations and gradients are `C × H × W`


def weighed(activations, weights):
    """The channels times their weights, added up."""
    return sum(weight * channel for weight, channel in zip(weights, activations))


def plusplus_weights(activations, first, second=None, third=None):
    """Grad-CAM++'s fractions as they stand, from the first three powers of the gradients, or their means."""
    second = first**2 if second is None else second
    third = first**3 if third is None else third
    weights = []
    for channel, one, two, three in zip(activations, first, second, third):
        total, weight = channel.sum(), 0.0
        for place in np.ndindex(channel.shape):
            below = 2 * two[place] + total * three[place]
            weight += max(0.0, one[place]) * (two[place] / below if below else 0.0)
        weights.append(weight)
    return weights


def interpolation(old, new):
    """What each of `new` places takes from each of `old` along one axis: linear, half-pixel centres."""
    table = np.zeros((new, old))
    for place in range(new):
        at = np.clip((place + 0.5) * old / new - 0.5, 0, old - 1)
        low = int(at)
        table[place, low] += 1 - at % 1
        table[place, min(low + 1, old - 1)] += at % 1
    return table


def enlarged(raw, side):
    """A map as large as a square picture, bilinear: along one axis and then the other."""
    return interpolation(raw.shape[0], side) @ raw @ interpolation(raw.shape[1], side).T


def heat_map(raw, side):
    """The positive part, enlarged and divided by its maximum."""
    large = enlarged(np.maximum(raw, 0), side)
    return large / large.max()


# How it compares


def raw_maps(cam, x, targets=None):
    """A method's own maps of all calls of its layers, before they are made positive and enlarged."""
    run = cam.run(x, targets)
    return [cam.get_layer_map(run, call) for layer in run.layers for call in run.calls(layer)]


def raw_map(cam, x, targets=None):
    """The one map of the first picture, as numpy."""
    (maps,) = raw_maps(cam, x, targets)
    return as_numpy(maps[0])


def assert_same(ours, paper, what="the map"):
    """Nowhere further apart than a ten-thousandth of the largest value."""
    ours, paper = np.asarray(ours), np.asarray(paper)
    assert ours.shape == paper.shape, f"{what}: shape {ours.shape}, expected {paper.shape}"
    largest = np.abs(paper).max()
    assert largest > 0, f"{what}: nothing to compare with"
    apart = np.abs(ours - paper).max() / largest
    assert apart < 1e-4, f"{what}: {apart:.1e} of the largest value apart"


def correlation(a, b):
    pair = torch.stack([torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()]).double()
    return torch.corrcoef(pair)[0, 1].item()


def share_of_hits(cam, batch):
    """How often the peak lies on the object asked for, of all objects in a batch of scenes."""
    shown, classes = batch.labels.nonzero(as_tuple=True)
    pictures, peaks = batch.images * 2 - 1, []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="blank heat map")  # a miss
        for rows in torch.arange(len(shown)).split(64):
            peaks.append(cam(pictures[shown[rows]], classes[rows]).flatten(1).argmax(1))
    on = batch.masks[shown, classes].flatten(1)
    return on[torch.arange(len(shown)), torch.cat(peaks)].float().mean().item()


def assert_peak_in_box(heat, label, box):
    y, x = divmod(heat.argmax().item(), heat.shape[1])
    left, top, right, bottom = box
    assert left <= x <= right and top <= y <= bottom, f"the peak ({x}, {y}) is not on the {label} {box}"


def flops(call):
    """Counted multiplications and additions."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# Guests leave no trace


def stopping(after, error=KeyboardInterrupt):
    """A hook that raises when it is called for the `after`-th time."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == after:
            raise error

    hook.calls = calls
    return hook


def assert_untouched(model, training=True):
    """Every module is in its mode, with no hook and no other forward; no parameter has a gradient."""
    for name, module in model.named_modules():
        assert module.training == training, f"{name or 'model'}: training is {module.training}"
        assert not module._forward_hooks, f"{name or 'model'}: a forward hook is left"
        assert not module._forward_pre_hooks, f"{name or 'model'}: a forward pre-hook is left"
        assert "forward" not in vars(module), f"{name or 'model'}: its forward is another"
    for name, p in model.named_parameters():
        assert p.grad is None, f"{name}: a gradient was written"


def assert_same_state(model, state):
    """Parameters and buffers are, to the last digit, what `state` says."""
    now = model.state_dict()
    assert list(now) == list(state)
    for name, tensor in now.items():
        assert torch.equal(tensor, state[name]), f"{name} has changed"
