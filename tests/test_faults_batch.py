"""What belongs to one picture is measured, not assumed: a batch gives what its pictures give one at a time."""

import warnings

import pytest
import timm
import torch
import transformers
from torch import nn

from gradcam_nb import (
    RISE,
    SESS,
    AblationCAM,
    AttentionRelevance,
    FullGrad,
    GradCAM,
    GScoreCAM,
    HiResCAM,
    OptiCAM,
    ReciproCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
)
from gradcam_nb.metrics import Deletion

QUIET = dict(progress=False)
METHODS = [(HiResCAM, {}), (ScoreCAM, QUIET), (AblationCAM, QUIET), (RISE, dict(QUIET, n_masks=30))]
IDS = [f"{method.__name__}" for method, _ in METHODS]


class Net(nn.Module):
    """Features, two heads, and an answer made of them."""

    def __init__(self, answer):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.a, self.b, self.answer, self.asked = nn.Linear(12, 5), nn.Linear(12, 7), answer, []

    def forward(self, x):
        self.asked.append(len(x))
        maps = self.features(x)
        return self.answer(self, maps, maps.mean((2, 3)))


def net(answer):
    torch.manual_seed(0)
    return Net(answer).eval()


def pictures(n=3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def one_by_one(method, how, model, layer, x, targets):
    return torch.cat([method(model, layer, **how)(x[i : i + 1], targets) for i in range(len(x))])


ANSWERS = {
    "a list of as many heads": (lambda s, m, z: [s.a(z), s.b(z), s.a(z)], lambda o: o[1][3]),
    "a list of one head": (lambda s, m, z: [s.a(z)], lambda o: o[0][3]),
    "a list of pictures": (lambda s, m, z: list(s.a(z)), lambda o: o[3]),
    "a dict of lists": (lambda s, m, z: {"heads": [s.a(z), s.b(z), s.a(z) * 2]}, lambda o: o["heads"][1][3]),
    "a tuple of heads": (lambda s, m, z: (s.a(z), s.b(z), s.a(z)), lambda o: o[1][3]),
    "steps first, as many as pictures": (lambda s, m, z: torch.stack([s.a(z), s.a(z * 2), s.a(z * 3)]), lambda o: o[2, 3]),
    "steps first": (lambda s, m, z: torch.stack([s.a(z), s.a(z * 2)]), lambda o: o[1, 3]),
    "classes first": (lambda s, m, z: s.a(z).T, lambda o: o[3]),
    "as many classes as pictures": (lambda s, m, z: s.a(z)[:, :3], lambda o: o[2]),
    "as many channels as pictures": (lambda s, m, z: m[:, :3], lambda o: o[1].mean()),
    "as many queries as pictures": (lambda s, m, z: z[:, :3, None] * s.a(z)[:, None], lambda o: o[1, 2]),
    "a number for each": (lambda s, m, z: s.a(z)[:, 0], lambda o: o),
    "something that is nobody's": (lambda s, m, z: (s.a(z), torch.arange(2.0)), lambda o: o[0][1] * o[1][1]),
}


@pytest.mark.parametrize("method, how", METHODS, ids=IDS)
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_read_as_of_one_picture(name, method, how):
    answer, target = ANSWERS[name]
    model, x = net(answer), pictures()
    together = method(model, "features", **how)(x, target)
    torch.testing.assert_close(together, one_by_one(method, how, model, "features", x, target), rtol=0, atol=1e-3)


def test_a_head_is_what_the_gradient_by_hand_says():
    model, x = net(ANSWERS["a list of as many heads"][0]), pictures()
    maps = model.features(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.b(maps.mean((2, 3)))[:, 3].sum(), maps)
    run = HiResCAM(model, "features").run(x, ANSWERS["a list of as many heads"][1])
    torch.testing.assert_close(run.record.gradients[model.features][0], gradient)


def test_five_levels_of_features_and_five_pictures():
    torch.manual_seed(0)
    levels, x = timm.create_model("resnet18", features_only=True).eval(), torch.randn(5, 3, 64, 64)

    def last_level(features):
        return features[-1].mean()

    alone = one_by_one(HiResCAM, {}, levels, "layer3", x, last_level)
    torch.testing.assert_close(HiResCAM(levels, "layer3")(x, last_level), alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "answer, targets",
    [(lambda s, m, z: s.a(z), lambda o: o[2]), (lambda s, m, z: s.a(z)[:, :3], [0, 1, 2]), (lambda s, m, z: {"logits": s.a(z)}, 2)],
    ids=["a callable", "as many classes as pictures", "a dict"],
)
def test_an_ordinary_answer_runs_the_model_once(answer, targets):
    model = net(answer)
    HiResCAM(model, "features")(pictures(), targets)
    assert model.asked == [3]


def test_an_open_answer_is_asked_about_once_more():
    model = net(ANSWERS["a list of as many heads"][0])
    HiResCAM(model, "features")(pictures(), lambda o: o[1][3])
    assert model.asked == [3, 1]


def test_a_target_may_tell_the_axis():
    def third_step(o):
        return o[2, 3]

    third_step.picture_axis = 1
    model = net(ANSWERS["steps first, as many as pictures"][0])
    together = HiResCAM(model, "features")(pictures(), third_step)
    assert model.asked == [3]
    torch.testing.assert_close(together, one_by_one(HiResCAM, {}, model, "features", pictures(), third_step))


def test_two_rows_for_each_picture_are_refused():
    model = net(lambda s, m, z: torch.cat([s.a(z), s.a(z)]))
    for target in (3, lambda o: o[3]):
        with pytest.raises(ValueError, match="targets: the model answered 3 pictures"):
            HiResCAM(model, "features")(pictures(), target)


class OnlyThree(Net):
    def forward(self, x):
        if len(x) != 3:
            raise RuntimeError("takes three pictures")
        return super().forward(x)


@pytest.mark.parametrize("method, how", [*METHODS[:1], METHODS[2]], ids=["HiResCAM", "AblationCAM"])
def test_a_model_for_three_pictures_is_asked_in_another_order(method, how):
    free = net(ANSWERS["steps first, as many as pictures"][0])
    fixed = OnlyThree(free.answer).eval()
    fixed.load_state_dict(free.state_dict())
    x, target = pictures(), ANSWERS["steps first, as many as pictures"][1]
    alone = one_by_one(method, how, free, "features", x, target)
    torch.testing.assert_close(method(fixed, "features", **how)(x, target), alone, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="it is open what of it belongs to which picture"):
        HiResCAM(fixed, "features")(x[:1].repeat(3, 1, 1, 1), target)  # the same picture three times


def test_masks_for_a_program_exported_for_two_pictures():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = pictures(2)
    program = torch.export.export(model, (x,)).module()
    for n_masks in (10, 11):
        maps = RISE(program, n_masks=n_masks, **QUIET)(x, 1)
        torch.testing.assert_close(maps, RISE(model, n_masks=n_masks, **QUIET)(x, 1), rtol=0, atol=1e-4)
    metric = Deletion(steps=3, batch_size=2)
    torch.testing.assert_close(metric(x, maps, 1, program), metric(x, maps, 1, model), rtol=0, atol=1e-5)


def small_clip():
    torch.manual_seed(0)
    text = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text |= dict(max_position_embeddings=16, eos_token_id=98, bos_token_id=1, pad_token_id=0)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=8)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    prompts = torch.randint(2, 97, (3, 7))
    prompts[:, -1] = 98
    return model, prompts


class PromptsInside(nn.Module):
    def __init__(self, clip, prompts):
        super().__init__()
        self.clip, self.prompts = clip, prompts

    def forward(self, pixel_values):
        return self.clip(pixel_values=pixel_values, input_ids=self.prompts).logits_per_image


PROMPTED = [
    (GradCAM, {}, "GradCAM"),
    (ScoreCAM, QUIET, "ScoreCAM"),
    (GScoreCAM, QUIET, "GScoreCAM"),
    (AblationCAM, QUIET, "AblationCAM"),
    (ReciproCAM, QUIET, "ReciproCAM"),
    (OptiCAM, dict(QUIET, iterations=4), "OptiCAM"),
    (SmoothGradCAMPlusPlus, dict(samples=2), "SmoothGradCAMPlusPlus"),
    (SESS, dict(QUIET, num_scales=1), "SESS"),
    (RISE, dict(QUIET, n_masks=70), "RISE"),
    (FullGrad, {}, "FullGrad"),
    (AttentionRelevance, {}, "AttentionRelevance"),
]


@pytest.mark.parametrize("method, how, name", PROMPTED, ids=[name for *_, name in PROMPTED])
@pytest.mark.parametrize("n, k, text_first", [(1, 3, False), (2, 3, True), (3, 3, False), (3, 2, True)])
def test_prompts_are_shared_by_all_pictures(method, how, name, n, k, text_first):
    clip, prompts = small_clip()
    x, prompts, layer = torch.randn(n, 3, 64, 64), prompts[:k], "vision_model.encoder.layers.1"
    named = name not in ("RISE", "FullGrad", "AttentionRelevance")
    inputs = dict(input_ids=prompts, pixel_values=x) if text_first else dict(pixel_values=x, input_ids=prompts)
    inside = PromptsInside(clip, prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some maps are blank
        together = method(clip, *[layer] * named, **how)(inputs, k - 1)
        alone = torch.cat([method(inside, *["clip." + layer] * named, **how)(one[None], k - 1) for one in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3)


@pytest.mark.parametrize("n", [2, 3])
def test_attention_methods_under_views_and_in_patches(n):
    clip, prompts = small_clip()
    x, inside = torch.randn(n, 3, 64, 64), PromptsInside(clip, prompts)
    inputs = dict(pixel_values=x, input_ids=prompts)
    together = AttentionRelevance(clip)(inputs, 1, aug_smooth=True)
    alone = torch.cat([AttentionRelevance(inside)(one[None], 1, aug_smooth=True) for one in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3)
    how = dict(QUIET, num_scales=1, base_method=AttentionRelevance)
    alone = torch.cat([SESS(inside, **how)(one[None], 1) for one in x])
    torch.testing.assert_close(SESS(clip, **how)(inputs, 1), alone, rtol=0, atol=2e-3)


def test_nothing_told_and_one_picture_with_three_prompts():
    clip, prompts = small_clip()
    x = torch.randn(1, 3, 64, 64)
    inputs, inside = dict(pixel_values=x, input_ids=prompts), PromptsInside(clip, prompts)
    for aug_smooth in (False, True):
        maps, wanted = GradCAM(clip)(inputs, 1, aug_smooth=aug_smooth), GradCAM(inside)(x, 1, aug_smooth=aug_smooth)
        torch.testing.assert_close(maps, wanted)


class Asked(nn.Module):
    """A question for each picture."""

    def __init__(self):
        super().__init__()
        self.features, self.words = nn.Conv2d(3, 8, 3, 2, 1), nn.Embedding(9, 8)

    def forward(self, picture, question):
        return self.features(picture).relu().mean((2, 3)) * self.words(question).mean(1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_question_for_each_picture_goes_with_it(n):
    torch.manual_seed(0)
    model, x, questions = Asked().eval(), pictures(n), torch.randint(0, 9, (n, 4))
    together = ScoreCAM(model, "features", **QUIET)((x, questions), 2)
    cam = ScoreCAM(model, "features", **QUIET)
    alone = torch.cat([cam((x[i : i + 1], questions[i : i + 1]), 2) for i in range(n)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x, t):
        return self.features(x) * (1 + t)


@pytest.mark.parametrize("step", [torch.tensor(0.3), torch.tensor([0.3])], ids=["a number", "one element"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("method, how", [(GradCAM, {}), *METHODS[1:]], ids=["GradCAM", *IDS[1:]])
def test_one_time_step_for_all_pictures(step, n, method, how):
    torch.manual_seed(0)
    model, x = Timed().eval(), pictures(n)

    def energy(out):
        return out.square().mean()

    together = method(model, "features", **how)((x, step), energy)
    alone = torch.cat([method(model, "features", **how)((one[None], step), energy) for one in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
