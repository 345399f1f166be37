"""What the comparisons with other libraries share: how alike maps are, networks and photos, a model left alone."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
import torchvision

PHOTOS = ("misc/both.png", "coral/cat_720p.jpg")  # a dog beside a cat, explained as a dog; a cat
PHOTO_CLASSES = [243, 281]  # bull mastiff, tabby


def correlation(a, b):
    """Of two maps; not a number where one of them is flat, which is no agreement."""
    return np.corrcoef(np.asarray(a, float).ravel(), np.asarray(b, float).ravel())[0, 1]


def correlations(maps, others):
    """Of two batches of maps, picture by picture."""
    maps, others = (batch.detach() if isinstance(batch, torch.Tensor) else np.asarray(batch) for batch in (maps, others))
    assert tuple(maps.shape) == tuple(others.shape)
    return [correlation(one, other) for one, other in zip(maps, others)]


def with_photos(build, data):
    """A network with real weights, the two photos as it takes them, and their classes."""
    import demo_models

    from gradcam_nb import preprocess_for

    model = getattr(demo_models, build)(data / "models")
    x = torch.cat([preprocess_for(model)(data / "images" / photo) for photo in PHOTOS])
    return model, x, PHOTO_CLASSES


def random_resnet():
    """A ResNet-18 that has learnt nothing, two pictures of noise, and a class for each."""
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval(), torch.randn(2, 3, 96, 96), [5, 7]


@contextlib.contextmanager
def left_as_it_was(model):
    """Modes, parameters, statistics, gradients and hooks are afterwards what they were."""

    def hooks():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return {(name, kind): len(getattr(module, kind)) for name, module in model.named_modules() for kind in kinds}

    modes = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = hooks()
    assert all(p.grad is None for p in model.parameters()), "it has gradients to begin with, so what is added would not show"
    yield
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert list(model.state_dict()) == list(state)
    assert [key for key, value in model.state_dict().items() if not value.equal(state[key])] == []
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []
    assert hooks() == before
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == []


def absent_name_gives_its_reason(module, name):
    """`from module import name` fails with the reason that the module's list has."""
    with pytest.raises(ImportError, match=r"not offered in \w+'s interface; .+") as caught:
        exec(f"from {module.__name__} import {name}")
    assert module.ABSENT[name] in str(caught.value)


def each_name_is_offered_or_absent(module, wanted):
    """Each public name of the other library is there or has a reason of one line; never both, and nothing besides."""
    offered, absent = set(module.__all__) - {"ABSENT"}, set(module.ABSENT)
    assert set(wanted) - offered - absent == set(), "neither there nor said why not"
    assert (offered | absent) - set(wanted) == set(), "the other library has no such name"
    assert offered & absent == set()
    for name, reason in module.ABSENT.items():
        assert len(reason) > 10, name
        assert "\n" not in reason, name


def warned_line(script, match):
    """Call a function that stands on one line, as a script would: a warning is to name this line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        script()
    said = [(warning.filename, warning.lineno) for warning in caught if match in str(warning.message)]
    assert said == [(script.__code__.co_filename, script.__code__.co_firstlineno)]
