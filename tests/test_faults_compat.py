"""Scripts that exchange parts of pytorch_grad_cam, as heat-map scripts for YOLO do: each map is the real package's, number for number."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("pytorch_grad_cam")

# Each function is a script; all are run with the real package, and with ours in its place.
SCRIPTS = """
import contextlib, copy, sys, types
import numpy as np
import torch
from torch import nn
import pytorch_grad_cam
from pytorch_grad_cam import EigenCAM, EigenGradCAM, FEM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, RefineCAM, ScoreCAM, XGradCAM
from pytorch_grad_cam import base_cam, eigen_cam, grad_cam
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget


class Detector(nn.Module):
    "Boxes and class scores at each place of a grid, and the raw features beside them."

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.neck = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.head = nn.Conv2d(12, 4 + 5, 1)

    def forward(self, x):
        features = self.neck(self.stem(x))
        raw = self.head(features)
        return torch.cat([raw[:, :4], raw[:, 4:].sigmoid()], 1).flatten(2), [raw]


def detector():
    torch.manual_seed(0)
    model = Detector()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2), module.running_var.uniform_(0.5, 2)
    return model


def classifier():
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))


x = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(2))
asked = [ClassifierOutputTarget(1), ClassifierOutputTarget(2)]


class Recorder:
    "A recorder of a script's own, with what it makes of the detector's answer."

    def __init__(self, model, target_layers, reshape_transform):
        self.model, self.gradients, self.activations, self.reshape_transform, self.handles = model, [], [], reshape_transform, []
        for layer in target_layers:
            self.handles += [layer.register_forward_hook(self.save_activation), layer.register_forward_hook(self.save_gradient)]

    def save_activation(self, module, input, output):
        if self.reshape_transform is not None:
            output = self.reshape_transform(output)
        self.activations.append(output.cpu().detach())

    def save_gradient(self, module, input, output):
        if not hasattr(output, "requires_grad") or not output.requires_grad:
            return

        def store(grad):
            self.gradients = [grad.cpu().detach()] + self.gradients

        output.register_hook(store)

    def post_process(self, result):
        boxes, logits = result[:, :4], result[:, 4:]
        order = logits.max(1)[0].sort(1, descending=True)[1]
        return logits[0].T[order[0]], boxes[0].T[order[0]]

    def __call__(self, x):
        self.gradients, self.activations = [], []
        scores, boxes = self.post_process(self.model(x)[0])
        return [[scores, boxes]]

    def release(self):
        for handle in self.handles:
            handle.remove()


class Boxes(nn.Module):
    "Its target: the best places' scores and boxes."

    def __init__(self, conf=0.2, ratio=0.1):
        super().__init__()
        self.conf, self.ratio = conf, ratio

    def forward(self, data):
        scores, boxes = data
        result = []
        for i in range(int(len(scores) * self.ratio)):
            if float(scores[i].max()) < self.conf:
                break
            result.append(scores[i].max())
            result += [boxes[i, j] for j in range(4)]
        return sum(result)


def an_own_recorder_with_post_process(method=GradCAM):
    model = detector()
    for p in model.parameters():
        p.requires_grad_(True)
    layers = [model.stem, model.neck]
    cam = method(model, layers)
    cam.activations_and_grads = Recorder(model, layers, None)
    return cam(x[:1], [Boxes()])


def an_own_recorder_for_xgradcam():
    return an_own_recorder_with_post_process(XGradCAM)


def an_own_recorder_for_eigengradcam_of_a_lower_layer():
    return an_own_recorder_with_post_process(EigenGradCAM)


def a_recorder_class_put_into_the_module():
    class Plain(Recorder):
        def __init__(self, model, target_layers, reshape_transform, detach=True):
            super().__init__(model, target_layers, reshape_transform)

    model = detector()
    with exchanged(base_cam, "ActivationsAndGradients", Plain):
        return LayerCAM(model, [model.stem, model.neck])(x[:1], [Boxes()])


def a_recorders_call_patched_on_its_class():
    def call(self, x):
        self.gradients, self.activations = [], []
        return self.model(x)[0][:, 4:].amax(2)

    model = detector()
    with exchanged(ActivationsAndGradients, "__call__", call):
        return GradCAM(model, [model.neck])(x, asked)


def a_recorders_hook_patched_on_its_class():
    plain = ActivationsAndGradients.save_activation

    def save(self, module, input, output):
        return plain(self, module, input, output * torch.linspace(0, 1, output.shape[-1]))

    model = classifier()
    with exchanged(ActivationsAndGradients, "save_activation", save):
        return GradCAM(model, [model[3]])(x, asked)


def a_wrapper_of_forward():
    model = detector()
    plain = model.forward
    model.forward = lambda x: plain(x)[0][:, 4:].amax(2)
    return GradCAM(model, [model.neck])(x, asked)


def a_method_set_on_the_object():
    model = classifier()
    cam = GradCAM(model, [model[3]])
    cam.get_cam_weights = lambda input_tensor, layer, targets, activations, grads: np.maximum(grads, 0).max(axis=(2, 3))
    return cam(x, asked)


def a_bound_method_set_on_the_object():
    def image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth=False):
        return np.abs(grads * activations).sum(axis=1)

    model = classifier()
    cam = LayerCAM(model, [model[1], model[3]])
    cam.get_cam_image = types.MethodType(image, cam)
    return cam(x, asked)


def forward_overridden_in_a_subclass():
    class Own(GradCAM):
        def forward(self, input_tensor, targets, eigen_smooth=False):
            input_tensor = input_tensor.to(self.device)
            self.outputs = outputs = self.activations_and_grads(input_tensor)
            self.model.zero_grad()
            loss = outputs[0][:, 4:].amax(2).sum()
            loss.backward(retain_graph=True)
            return self.aggregate_multi_layers(self.compute_cam_per_layer(input_tensor, targets, eigen_smooth))

    model = detector()
    return Own(model, [model.stem, model.neck])(x, None)


def a_subclass_that_runs_the_model_itself():
    class Own(BaseCAM):
        "One forward pass more for each channel; the model was never put into evaluation mode by the script."

        def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
            with torch.no_grad():
                plain = self.model(input_tensor)[0][:, 4:].amax((1, 2))
                changed = self.model(input_tensor.flip(-1))[0][:, 4:].amax((1, 2))
            return np.mean(grads, axis=(2, 3)) * (plain / changed).numpy()[:, None]

    model = detector().train()
    cam = Own(model, [model.neck])
    cam.activations_and_grads = Recorder(model, [model.neck], None)
    return cam(x[:1], [Boxes()])


def the_size_patched():
    model = classifier()
    with exchanged(BaseCAM, "get_target_width_height", lambda self, input_tensor: (20, 24)):
        return GradCAM(model, [model[3]])(x, asked)


def the_size_set_on_the_object():
    model = classifier()
    cam = XGradCAM(model, [model[1]])
    cam.get_target_width_height = lambda input_tensor: (7, 5)
    return cam(x, asked)


def compute_cam_per_layer_overridden():
    class Own(GradCAM):
        def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
            maps = super().compute_cam_per_layer(input_tensor, targets, eigen_smooth)
            return [one ** (i + 1) for i, one in enumerate(maps)]

    model = classifier()
    return Own(model, [model[1], model[3]])(x, asked)


def aggregate_multi_layers_patched_on_the_class():
    def largest(self, maps):
        return scale_cam_image(np.max(np.concatenate(maps, axis=1), axis=1))

    model = classifier()
    with exchanged(HiResCAM, "aggregate_multi_layers", largest):
        return HiResCAM(model, [model[1], model[3]])(x, asked)


def get_cam_weights_patched_on_the_class():
    def weights(self, input_tensor, target_layer, targets, activations, grads):
        return np.median(grads, axis=(2, 3))

    model = classifier()
    with exchanged(GradCAM, "get_cam_weights", weights):
        return GradCAM(model, [model[1]])(x, asked, aug_smooth=True)


def a_function_of_a_module_patched():
    def own(cam, target_size=None):
        return np.sqrt(scale_cam_image(cam, target_size))

    model = classifier()
    with exchanged(base_cam, "scale_cam_image", own):
        return GradCAM(model, [model[1], model[3]])(x, asked)


def a_projection_patched():
    model = classifier()
    with exchanged(eigen_cam, "get_2d_projection", lambda activations: activations.max(axis=1)):
        return EigenCAM(model, [model[3]])(x, asked)


def a_second_recorder_beside_the_first():
    model = classifier().eval()
    beside = ActivationsAndGradients(model, [model[1]], None)
    heat = GradCAM(model, [model[3]])(x, asked)
    counts = [len(beside.activations), len(beside.gradients)]
    found = beside.gradients[0].numpy() if counts[1] else np.zeros(1)
    beside.release()
    return np.concatenate([heat.ravel(), found.ravel() * 100, counts])


def what_was_recorded_after_a_call():
    model = classifier()
    cam = GradCAM(model, [model[1], model[3]])
    cam(x, asked)
    kept = cam.activations_and_grads
    return np.concatenate([value.numpy().ravel() for value in (*kept.activations, *kept.gradients)])


def a_recorder_in_training_mode():
    model = detector().train()
    recorder = ActivationsAndGradients(model, [model.neck], None)
    output = recorder(x)
    output[0][:, 4:].sum().backward()
    both = np.concatenate([recorder.activations[0].numpy().ravel(), recorder.gradients[0].numpy().ravel()])
    recorder.release()
    return both


def time_folded_into_the_batch():
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.conv, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 4)

        def forward(self, clips):
            frames = self.conv(clips.transpose(1, 2).flatten(0, 1)).relu()
            return self.head(frames.mean((2, 3)).unflatten(0, (len(clips), -1)).mean(1))

    def unfold(value):
        return value.unflatten(0, (1, -1)).transpose(1, 2)

    model, clip = Video(), torch.rand(1, 3, 4, 16, 20, generator=torch.Generator().manual_seed(4))
    return GradCAM(model, [model.conv], unfold)(clip, asked[:1])


def a_tuple_as_output():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            y = self.net(x)
            return y, y * 2

    class First:
        def __call__(self, output):
            return output[:, 1].sum()

    model = Two()
    return GradCAM(model, [model.net[3]])(x, [First()])


def eigencam_and_fem_call_no_target():
    def never(output):
        raise AssertionError("nobody asks")

    model = detector()
    return np.concatenate([method(model, [model.neck])(x, [never]) for method in (EigenCAM, FEM)])


def a_map_for_each_layer_of_scorecam_in_training_mode():
    model = classifier().train()
    cam = ScoreCAM(model, [model[3]])
    cam.batch_size = 4
    return cam(x, asked)


def layers_changed_afterwards():
    model = classifier()
    cam = GradCAM(model, [model[1], model[3]])
    cam.target_layers = cam.target_layers[:1]
    return cam(x, asked)


def a_base_method_of_the_scripts_own_in_refinecam():
    class Own(LayerCAM):
        def __init__(self, model, target_layers, reshape_transform=None, power=1):
            super().__init__(model, target_layers, reshape_transform)
            self.power = power

        def get_cam_image(self, *asked):
            return super().get_cam_image(*asked) ** self.power

    model = classifier()
    return RefineCAM(model, [model[1], model[3]], base_method=Own, power=3)(x, asked)


def a_target_that_does_not_reach_the_layer():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            self.left(x)
            return self.right(x).mean((2, 3))

    model, raised = Apart(), []
    for method in (GradCAM, HiResCAM, GradCAMPlusPlus):
        try:
            method(model, [model.left])(x, asked)
            raised.append(0)
        except (ValueError, TypeError, AttributeError):
            raised.append(1)
    return np.float32(raised)


@contextlib.contextmanager
def exchanged(owner, name, value):
    had, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if had else delattr(owner, name)


names = [name for name, value in list(globals().items()) if isinstance(value, types.FunctionType) and value.__module__ == "__main__"]
maps = {name: globals()[name]() for name in names if name not in ("detector", "classifier", "exchanged")}
np.savez(sys.argv[1], **maps)
"""
NO_SCRIPTS = {"detector", "classifier", "exchanged"}
DEFINED = [line[4:].split("(")[0] for line in SCRIPTS.splitlines() if line.startswith("def ")]
NAMES = [name for name in DEFINED if name not in NO_SCRIPTS]


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    (script := folder / "scripts.py").write_text(SCRIPTS)
    env = dict(os.environ, PYTHONWARNINGS="ignore")
    for launcher, out in (([], "theirs"), (["-m", "gradcam_nb.compat", "--force"], "ours")):
        done = subprocess.run([sys.executable, *launcher, script, folder / f"{out}.npz"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return [np.load(folder / f"{out}.npz") for out in ("ours", "theirs")]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_script_exchanges_is_called(name, maps):
    ours, theirs = (found[name] for found in maps)
    assert ours.shape == theirs.shape and np.isfinite(theirs).all() and theirs.std() > 0 or name.startswith("a_target")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
