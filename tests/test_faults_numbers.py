"""Numbers that are no plain floats, and modes that the user set."""

import warnings

import pytest
import torch
from torch import nn

from gradcam_nb import (
    RISE,
    SESS,
    SSCAM,
    AblationCAM,
    EigenCAM,
    FullGrad,
    GradCAM,
    GuidedBackpropReLUModel,
    GuidedGradCAM,
    HiResCAM,
    OptiCAM,
    ReciproCAM,
    ScoreCAM,
    ShapleyCAM,
    SmoothGradCAMPlusPlus,
)
from gradcam_nb.core.perturbation import masked

QUIET = dict(progress=False)


class Meta(torch.Tensor):
    """What is made of it is of its kind."""


class Tagged(torch.Tensor):
    """Keeps a note, as medical pictures keep their place in the body."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        answer = super().__torch_function__(function, types, args, kwargs or {})
        note = next((vars(a)["note"] for a in args if isinstance(a, cls) and "note" in vars(a)), None)
        if isinstance(answer, cls) and note:
            answer.note = note
        return answer


def body():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    ).eval()


SUBCLASSED = [
    (GradCAM, ["4"], {}),
    (HiResCAM, ["2"], {}),
    (ShapleyCAM, ["4"], {}),
    (ScoreCAM, ["4"], QUIET),
    (AblationCAM, ["4"], QUIET),
    (OptiCAM, ["4"], dict(QUIET, iterations=3)),
    (FullGrad, [], {}),
    (GuidedBackpropReLUModel, [], {}),
    (GuidedGradCAM, ["4"], {}),
]


@pytest.mark.parametrize("kind", [Meta, Tagged])
@pytest.mark.parametrize("method, layer, how", SUBCLASSED, ids=[m.__name__ for m, *_ in SUBCLASSED])
def test_a_subclass_of_tensor_gives_the_same(method, layer, how, kind):
    model, x = body(), torch.randn(2, 3, 16, 16)
    given = x.clone().as_subclass(kind)
    given.note = "a note"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, other = (method(model, *layer, **how)(t, 1) for t in (x, given))
    torch.testing.assert_close(other.as_subclass(torch.Tensor), plain, rtol=0, atol=1e-6)


class OfBytes(nn.Module):
    """Divides by 255 where it sees bytes, as some preprocessing does."""

    def __init__(self):
        super().__init__()
        self.body = body()
        self.seen = set()

    def forward(self, x):
        self.seen.add(x.dtype)
        return self.body((x if x.is_floating_point() else x / 255) * 4 - 2)


def byte_pictures(n=2):
    x = (torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255).round()
    x[:, :, :, 8:] *= 0.3
    return x.to(torch.uint8)


BYTES = [(GradCAM, {}), (ScoreCAM, QUIET), (AblationCAM, QUIET), (RISE, dict(QUIET, n_masks=30)), (SESS, dict(QUIET, num_scales=2))]
BYTES += [(SSCAM, dict(QUIET, samples=3, std=0.1)), (SmoothGradCAMPlusPlus, dict(samples=3))]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("aug_smooth", [False, True])
@pytest.mark.parametrize("method, how", BYTES, ids=[m.__name__ for m, _ in BYTES])
def test_pictures_of_whole_numbers(method, how, aug_smooth, dtype):
    model, x = OfBytes().eval(), byte_pictures()
    maps = method(model, "body.4", **how)(x.to(dtype), 1, aug_smooth=aug_smooth)
    assert model.seen == {dtype}
    wanted = method(model, "body.4", **how)(x / 255, 1, aug_smooth=aug_smooth)
    assert (maps - wanted).abs().max() < 0.06
    assert (maps - wanted).abs().mean() < 0.01


def test_no_map_is_flipped_whose_picture_was_not():
    model, x, seen = OfBytes().eval(), byte_pictures(1), []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.extend((*args, *kwargs.values())), with_kwargs=True)
    for given in (x, (x,), {"x": x}):
        GradCAM(model, "body.4")(given, 1, aug_smooth=[(lambda t: t.flip(-1), lambda maps: maps.flip(-1))])
    for plain, flipped in (seen[:2], seen[2:4], seen[4:]):
        assert torch.equal(plain, x)
        assert torch.equal(flipped, x.flip(-1))


def test_masks_on_whole_numbers_by_hand():
    picture = torch.tensor([[[[255, 255, 10, 0]]]], dtype=torch.uint8)
    mask = torch.tensor([[[0.5, 1.5, 0.26, 1.0]]])
    assert masked(picture, [0], mask).tolist() == [[[[128, 255, 3, 0]]]]
    assert picture.tolist() == [[[[255, 255, 10, 0]]]]
    assert masked(picture.int() * -1, [0], mask).tolist() == [[[[-128, -382, -3, 0]]]]
    assert masked([picture[0]], [0], mask)[0].tolist() == [[[128, 255, 3, 0]]]
    assert masked(picture > 0, [0], torch.tensor([[[0.4, 0.6, 1.0, 1.0]]])).tolist() == [[[[False, True, True, False]]]]


@pytest.mark.parametrize("method", [FullGrad, GuidedBackpropReLUModel, GuidedGradCAM])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.complex64])
def test_a_gradient_at_whole_numbers_is_refused(method, dtype):
    with pytest.raises(TypeError, match="input_tensor: .* pass floating point numbers"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method(Real())(byte_pictures().to(dtype), 1)


def test_a_mask_sought_by_descent_over_bytes_is_refused():
    with pytest.raises(TypeError, match="input_tensor: .* pass floating point numbers"):
        OptiCAM(OfBytes().eval(), "body.4", **QUIET)(byte_pictures(), 1)


class Real(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()
        self.eval()

    def forward(self, x):
        return self.body((x.real if x.is_complex() else x).float() / 64 - 2)


@pytest.mark.parametrize("method, how", BYTES, ids=[m.__name__ for m, _ in BYTES])
def test_complex_pictures(method, how):
    x = byte_pictures().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps, wanted = (method(Real(), "body.4", **how)(t, 1, aug_smooth=True) for t in (torch.complex(x, x * 0), x))
    torch.testing.assert_close(maps, wanted, rtol=0, atol=1e-3)


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        q = torch.ao.quantization
        self.first, self.last = q.QuantStub(), q.DeQuantStub()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.head(self.features(self.first(x)).mean((2, 3))))


@pytest.fixture(scope="module")
def quantised():
    """A network before and after static quantisation."""
    q, engines = torch.ao.quantization, torch.backends.quantized.supported_engines
    engine = next((name for name in ("fbgemm", "x86", "qnnpack") if name in engines), None)
    if engine is None:
        pytest.skip("no engine for quantised layers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.backends.quantized.engine = engine
        model = Quantised().eval()
        model.qconfig = q.get_default_qconfig(engine)
        watched = q.prepare(model)
        watched(torch.randn(16, 3, 16, 16))
        return model, q.convert(watched)


@pytest.mark.parametrize("method", [EigenCAM, ScoreCAM, RISE])
def test_a_quantised_network_where_no_gradient_is_needed(method, quantised):
    model, small = quantised
    how = dict(QUIET, n_masks=200, centred=True) if method is RISE else QUIET if method is ScoreCAM else {}
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    maps, wanted = (method(net, "features.3", **how)(x, 1) for net in (small, model))
    for one, other in zip(maps.flatten(1), wanted.flatten(1)):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.8


def test_ablation_of_a_quantised_layer_by_hand(quantised):
    _, small = quantised
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = small.features(small.first(x))
        plain, drops = small(x)[0, 1], []
        for channel in range(8):
            numbers = maps.dequantize()
            numbers[:, channel] = 0
            again = torch.quantize_per_tensor(numbers, maps.q_scale(), maps.q_zero_point(), maps.dtype)
            drops.append(plain - small.last(small.head(again.mean((2, 3))))[0, 1])
    cam = AblationCAM(small, "features.3", **QUIET)
    run = cam.run(x, 1)
    (call,) = run.calls(small.features[3])
    torch.testing.assert_close(cam.get_channel_weights(run, call, [run.targets])[0, 0], torch.stack(drops) / plain.abs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [GradCAM, HiResCAM, ShapleyCAM])
def test_a_gradient_of_a_quantised_layer_is_refused(method, quantised):
    with pytest.raises(ValueError, match="layer: .* quantised numbers, which have no gradient"):
        method(quantised[1], "features.3")(torch.randn(1, 3, 16, 16), 1)
    with pytest.warns(UserWarning, match="guided gradient is zero"):
        assert not GuidedBackpropReLUModel(quantised[1])(torch.randn(1, 3, 16, 16), 1).any()


class Bayesian(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.drop, self.head = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU()), nn.Dropout(0.5), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.drop(self.features(x).mean((2, 3))))


def bayesian():
    torch.manual_seed(0)
    model = Bayesian().eval()
    model.drop.train()
    return model


@pytest.mark.parametrize("method", [lambda m: GradCAM(m, "features"), lambda m: GradCAM(m), FullGrad, GuidedBackpropReLUModel])
def test_dropout_that_was_left_on_stays_on(method):
    model, x = bayesian(), torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="'drop' .Dropout. is in training mode, and stays so") as said:
        maps = torch.stack([method(model)(x, 1) for _ in range(8)])
    assert len([one for one in said if "training mode" in str(one.message)]) == 1
    assert said[0].filename == __file__
    assert maps.std(0).max() > 1e-4
    assert [name for name, module in model.named_modules() if module.training] == ["drop"]


def test_dropout_of_a_model_in_training_is_off():
    model, x = bayesian().train(), torch.randn(2, 3, 32, 32)
    assert torch.equal(GradCAM(model, "features")(x, 1), GradCAM(model, "features")(x, 1))
    assert all(module.training for module in model.modules())


def test_statistics_do_not_change():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 3, 12, 12)
    wanted = GradCAM(model, "2")(x, 1)
    model[1].train()
    before = model[1].running_mean.clone()
    with pytest.warns(UserWarning, match="'1' .BatchNorm2d. is in training mode, and is explained in evaluation mode"):
        maps = GradCAM(model, "2")(x, 1)
    assert torch.equal(maps, wanted)
    assert torch.equal(model[1].running_mean, before)
    assert model[1].training


@pytest.mark.parametrize("method", [AblationCAM, ScoreCAM, ReciproCAM, lambda *a, **how: RISE(*a, n_masks=20, **how)])
def test_a_batch_norm_without_statistics_does_not_mix_masked_copies(method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    one = method(model, "0", batch_size=1, **QUIET)(x, 1)
    with pytest.warns(UserWarning, match="influence each other"):
        many = method(model, "0", batch_size=64, **QUIET)(x, 1)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)
