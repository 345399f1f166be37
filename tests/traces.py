"""What a guest in a model could leave there: other modules, modes, hooks, gradients, values."""

import torch


def traces(model):
    """All of it, by name; values and gradients as copies."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[f"module {name}"] = module
        found[f"mode of {name}"] = module.training
        found[f"attributes of {name}"] = list(vars(module))  # a replaced forward would be one more
        found[f"hooks of {name}"] = sum(len(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks"))
    for name, p in model.named_parameters():
        found[f"requires_grad of {name}"] = p.requires_grad
        found[f"gradient of {name}"] = None if p.grad is None else p.grad.clone()
    for name, value in model.state_dict().items():
        found[f"values of {name}"] = value.clone()
    return found


def assert_untouched(model, before):
    """The model is as `traces` found it, to the last bit."""
    now = traces(model)
    assert list(now) == list(before), "modules or parameters came or went"
    for what, value in before.items():
        if isinstance(value, torch.Tensor) and isinstance(now[what], torch.Tensor):
            assert torch.equal(now[what], value), f"changed: {what}"
        else:
            assert now[what] is value or now[what] == value, f"changed: {what}, from {value} to {now[what]}"
