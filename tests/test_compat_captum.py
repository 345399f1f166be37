"""captum's interface: its scripts run with nothing but the import changed, and give its numbers."""

import copy
import inspect

import pytest
import torch
import torchvision
from oracles_libraries import (
    absent_name_gives_its_reason,
    each_name_is_offered_or_absent,
    left_as_it_was,
    random_resnet,
    warned_line,
    with_photos,
)
from torch import nn

import gradcam_nb.compat.captum as ours

theirs = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor", "ignore:Setting forward")

LAYERS = ["LayerGradCam", "LayerGradientXActivation", "LayerActivation", "GuidedGradCam"]
INPUTS = ["Saliency", "InputXGradient", "GuidedBackprop"]
NETWORKS = {"resnet18": ("layer3", "layer4"), "mobilenet_v2, real": ("features.7", "features.18")}


class Net(nn.Module):
    """Two convolutions; places or classes; a second picture and further arguments."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.relu1 = nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(inplace=True)
        self.conv4, self.relu4 = nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x, y=None, times=None, dense=False):
        x = self.relu4(self.conv4(self.relu1(self.conv1(x if y is None else x - y))))
        x = x if dense else self.fc(x.mean((2, 3)))
        return x if times is None else times * x


class Split(nn.Module):
    """A layer that gives two tensors, and takes two."""

    def __init__(self):
        super().__init__()
        self.conv, self.pair = nn.Conv2d(3, 4, 3), Pair()

    def forward(self, x):
        x = self.conv(x)
        a, b = self.pair(x, x.relu())
        return (a * b).mean((2, 3))


class Pair(nn.Module):
    def forward(self, a, b):
        return a.tanh(), (a - b).exp()


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def case(name, request):
    return random_resnet() if name == "resnet18" else with_photos("mobilenet_v2_imagenet", request.getfixturevalue("data"))


def same(here, there):
    """The same numbers, in the same structure."""
    assert type(here) is type(there)
    if isinstance(there, (tuple, list)):
        assert len(here) == len(there)
        return [same(a, b) for a, b in zip(here, there)]
    there = there.detach()
    assert not here.requires_grad
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5 * there.abs().max().item() if there.numel() else 0)


def both(name, model, layer, inputs, *asked, given={}, **how):
    """One script with their class and with ours: they agree."""

    def run(library):
        layers = [] if layer is None else [layer]
        fresh = tuple(t.clone() for t in inputs) if isinstance(inputs, tuple) else inputs.clone()
        return getattr(library, name)(model, *layers, **given).attribute(fresh, *asked, **how)

    here, there = run(ours), run(theirs)
    same(here, there)
    return here


# --- names


def test_every_public_name_is_there_or_says_why_not():
    each_name_is_offered_or_absent(ours, theirs.__all__)
    assert set(ours.__all__) == {*LAYERS, *INPUTS, "Attribution", "LayerAttribution", "ABSENT"}


@pytest.mark.parametrize("name", ours.ABSENT)
def test_an_absent_name_gives_its_reason(name):
    absent_name_gives_its_reason(ours, name)


def test_a_name_that_nobody_has():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ours.no_such_name


@pytest.mark.parametrize("name", [*LAYERS, *INPUTS])
def test_arguments_stand_where_theirs_stand(name):
    def arguments(library, method):
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [(p.name, p.default) for p in parameters]

    here = arguments(ours, "__init__")
    if name.startswith("Guided"):  # the two that need a model, and call it one
        here = [(label.replace("forward_func", "model"), default) for label, default in here]
    assert here == arguments(theirs, "__init__")
    assert arguments(ours, "attribute") == arguments(theirs, "attribute")


@pytest.mark.parametrize("name", [*LAYERS, *INPUTS])
def test_what_an_attribution_says_of_itself(name):
    given = [nn.Conv2d(3, 3, 1)] * (2 if name in LAYERS else 1)
    mine, peer = (getattr(library, name)(*given) for library in (ours, theirs))
    assert mine.get_name() == peer.get_name()
    assert mine.multiplies_by_inputs == peer.multiplies_by_inputs
    assert mine.has_convergence_delta() == peer.has_convergence_delta()


# --- scripts, as the classes' own examples have them


ENLARGED = """
from captum.attr import LayerAttribution, LayerGradCam
layer_gc = LayerGradCam(net, net.conv4)
input = x.clone().requires_grad_()
attr = layer_gc.attribute(input, 3)
upsampled_attr = LayerAttribution.interpolate(attr, (32, 32))
smooth = LayerAttribution.interpolate(attr, (20, 30), "bilinear")
results = [attr, upsampled_attr, smooth, layer_gc.attribute(input, 3, relu_attributions=True)]
"""
GUIDED = """
from captum.attr import GuidedBackprop, GuidedGradCam
results = [GuidedGradCam(net, net.conv4).attribute(x, 3), GuidedBackprop(net).attribute(x, target=3)]
"""
AT_A_LAYER = """
from captum.attr import LayerActivation, LayerGradientXActivation
results = [LayerActivation(net, net.conv1).attribute(x), LayerGradientXActivation(net, net.conv1).attribute(x, 3)]
"""
AT_THE_INPUT = """
from captum.attr import InputXGradient, Saliency
results = [Saliency(net).attribute(x, target=3), Saliency(net).attribute(x, 3, False), InputXGradient(net).attribute(x, target=3)]
"""
TWO_INPUTS = """
from captum.attr import LayerGradCam, Saliency
at_the_layer = LayerGradCam(net, net.conv4).attribute((x, y), [1, 2, 3], (None, False))
results = [at_the_layer, *Saliency(net).attribute((x, y), 3, additional_forward_args=2.0)]
"""
SCRIPTS = {"enlarged": ENLARGED, "guided": GUIDED, "at a layer": AT_A_LAYER, "at the input": AT_THE_INPUT, "two inputs": TWO_INPUTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_with_the_import_changed(script, net, x):
    found = []
    for library in ("gradcam_nb.compat.captum", "captum.attr"):
        names = dict(torch=torch, net=net, x=x.clone(), y=x.flip(-1).clone())
        exec(SCRIPTS[script].replace("captum.attr", library), names)
        found.append(names["results"])
    same(*found)


# --- the same numbers


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_theirs(name, request):
    model, pictures, classes = case(name, request)
    for layer in map(model.get_submodule, NETWORKS[name]):
        both("LayerGradCam", model, layer, pictures, classes)
        both("LayerGradientXActivation", model, layer, pictures, classes)
    both("LayerGradCam", model, layer, pictures, classes, attribute_to_layer_input=True, attr_dim_summation=False)
    both("LayerActivation", model, layer, pictures)
    both("GuidedGradCam", model, layer, pictures, classes, interpolate_mode="bilinear")
    both("Saliency", model, None, pictures, classes)


@pytest.mark.parametrize(
    "target", [3, torch.tensor(3), torch.tensor([3]), torch.tensor([1, 2, 3]), [1, 2, 3], (4,), [(1,), (2,), (3,)]], ids=str
)
def test_targets(target, net, x):
    for name in ("LayerGradCam", "LayerGradientXActivation"):
        both(name, net, net.conv4, x, target)
    for name in INPUTS:
        both(name, net, None, x, target)


@pytest.mark.parametrize("target", [(4, 5, 6), [(1, 2, 3), (4, 5, 6), (7, 8, 9)]], ids=["one", "for each"])
def test_targets_of_outputs_with_places(target, net, x):
    both("LayerGradCam", net, net.conv1, x, target, (None, None, True))
    both("InputXGradient", net, None, x, target, (None, None, True))


@pytest.mark.parametrize(
    "function",
    [lambda net: lambda t: net(t).softmax(1), lambda net: net.forward, nn.DataParallel],
    ids=["function", "its forward", "wrapped"],
)
def test_what_is_called_may_be_a_function(function, net, x):
    if function is not nn.DataParallel:
        both("LayerGradCam", function(net), net.conv4, x, 3, attribute_to_layer_input=True)
        both("Saliency", function(net), None, x, 3)
    else:
        same(ours.LayerGradCam(function(net), net.conv4).attribute(x, 3), theirs.LayerGradCam(net, net.conv4).attribute(x, 3))
    both("LayerGradCam", lambda t: net(t)[:, 3], net.conv4, x)  # a number for each picture needs no target
    both("Saliency", lambda t: net(t)[:, [3]], None, x)


@pytest.mark.parametrize("to_input", [False, True], ids=["given", "taken"])
def test_layers_of_several_tensors_and_several_layers(to_input, net, x):
    torch.manual_seed(0)
    model = Split().eval()
    for name in ("LayerGradCam", "LayerGradientXActivation"):
        assert len(both(name, model, model.pair, x, 3, attribute_to_layer_input=to_input)) == 2
    assert len(both("LayerActivation", model, model.pair, x, attribute_to_layer_input=to_input)) == 2
    both("LayerActivation", net, [net.conv1, net.conv4], x, attribute_to_layer_input=to_input)
    both("LayerGradientXActivation", net, [net.conv1, net.conv4], x, 3, attribute_to_layer_input=to_input)
    both("LayerGradientXActivation", net, net.conv4, x, 3, attribute_to_layer_input=to_input, given={"multiply_by_inputs": False})
    both("LayerGradCam", net, net.fc, x, 3, attribute_to_layer_input=to_input)  # two dimensions: nothing to average over


def test_what_a_layer_is_given_counts_wherever_it_is_used():
    """The shortcut of a residual block; and a frozen parameter that a layer is given stays one."""
    torch.manual_seed(0)
    resnet, pictures = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)
    both("LayerGradCam", resnet, resnet.layer4[0].conv1, pictures, 3, attribute_to_layer_input=True)
    resnet.requires_grad_(False)
    both("LayerGradientXActivation", resnet, resnet.layer4[1].conv1, pictures, 3, attribute_to_layer_input=True)

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.by, self.see = nn.Parameter(torch.rand(1, 3, 1, 1), requires_grad=False), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return (self.see(x) * self.see(self.by.expand(1, 3, 9, 9)).mean()).mean((2, 3))

    model = Given().eval()
    found = ours.LayerGradCam(model, model.see).attribute(torch.randn(1, 3, 9, 9), 2, attribute_to_layer_input=True)
    assert found.shape == (1, 1, 9, 9)
    assert found.any()
    assert not model.by.requires_grad


class Beside(nn.Module):
    """A table beside the picture."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, picture, table):
        return self.net(picture) * table


def test_an_input_on_which_nothing_lies(net, x):
    """The table's part is empty, with a warning."""
    model, inputs = Beside(net).eval(), (x, torch.rand(3, 10))
    with pytest.warns(UserWarning):
        both("GuidedGradCam", model, net.conv4, inputs, 3)
    with pytest.warns(UserWarning, match="its attribution is empty"):
        picture, table = ours.GuidedGradCam(model, net.conv4).attribute(inputs, 3)
    assert picture.shape == x.shape
    assert table.numel() == 0


def test_a_warning_names_the_scripts_line(net, x):
    method = ours.GuidedGradCam(Beside(net).eval(), net.conv4)
    warned_line(lambda: method.attribute((x, torch.rand(3, 10)), 3), "its attribution is empty")


# --- the model


@pytest.mark.parametrize("name", [*LAYERS, *INPUTS])
def test_the_model_is_left_as_it_was(name, net, x):
    model = copy.deepcopy(net).requires_grad_(False).train()
    layers, asked = ([model.conv4] if name in LAYERS else []), ([] if name == "LayerActivation" else [3])
    method = getattr(ours, name)(model, *layers)
    with left_as_it_was(model):
        with torch.no_grad():
            found = method.attribute(x, *asked)
        with torch.inference_mode():
            assert method.attribute(x, *asked).equal(found)
        torch.testing.assert_close(torch.cat([method.attribute(one[None], *asked) for one in x]), found)
        if layers:
            method.attribute(x, *asked, attribute_to_layer_input=True)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            method.attribute(x[:, :2], *asked)
    assert not x.requires_grad


def test_errors(net, x):
    for target, says in ((None, "return a scalar tensor"), (10, "pass 0 to 9"), ([1, 2], "got 2 for 3 pictures")):
        with pytest.raises(ValueError, match=says):
            ours.LayerGradCam(net, net.conv4).attribute(x, target)
    with pytest.raises(ValueError, match="not a part of this"):
        ours.LayerGradCam(net, nn.ReLU()).attribute(x, 3)
    with pytest.raises(TypeError, match="expected a tensor"):
        ours.Saliency(net).attribute(None, 3)
    with pytest.raises(NotImplementedError, match="override attribute"):
        ours.Attribution(net).attribute(x)
