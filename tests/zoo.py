"""Families of classifiers, one small variant each: which layer and which reshape transform are found where nothing is told.

`python tests/zoo.py` writes the book's table, nbs/guides/zoo.csv. The tests hold it against what they find.
"""

import csv
import time
import warnings
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny_models import draw_zeroed_weights
from torch import nn

from gradcam_nb import GradCAM, Preprocess, explain, list_layers, verify_layout
from gradcam_nb.engine.as_found import forgets

TABLE = Path(__file__).resolve().parent.parent / "nbs" / "guides" / "zoo.csv"
SMALL = dict(depth=3, embed_dim=192, num_heads=3)  # of families whose smallest variant has more than 80 million parameters

# family -> model, side of the picture, options
TORCHVISION = {
    "alexnet": ("alexnet", 224, {}),
    "convnext": ("convnext_tiny", 160, {}),
    "densenet": ("densenet121", 160, {}),
    "efficientnet": ("efficientnet_b0", 160, {}),
    "efficientnet_v2": ("efficientnet_v2_s", 160, {}),
    "googlenet": ("googlenet", 160, dict(init_weights=True)),
    "inception": ("inception_v3", 160, dict(init_weights=True)),
    "maxvit": ("maxvit_t", 224, {}),
    "mnasnet": ("mnasnet0_5", 160, {}),
    "mobilenet_v2": ("mobilenet_v2", 160, {}),
    "mobilenet_v3": ("mobilenet_v3_small", 160, {}),
    "regnet_x": ("regnet_x_400mf", 160, {}),
    "regnet_y": ("regnet_y_400mf", 160, {}),
    "resnet": ("resnet18", 160, {}),
    "resnext": ("resnext50_32x4d", 160, {}),
    "shufflenet_v2": ("shufflenet_v2_x0_5", 160, {}),
    "squeezenet": ("squeezenet1_1", 160, {}),
    "swin": ("swin_t", 160, {}),
    "swin_v2": ("swin_v2_t", 160, {}),
    "vgg": ("vgg11", 160, {}),
    "vit": ("vit_b_32", 224, {}),
    "wide_resnet": ("wide_resnet50_2", 160, {}),
}
# timm's modules; missing are nasnet, pnasnet and mobilenetv5 (more than 80 million parameters) and vgg, which is above
TIMM = {
    "beit": ("beit_base_patch16_224", 224, SMALL),
    "byoanet": ("eca_botnext26ts_256", 256, {}),
    "byobnet": ("mobileone_s1", 160, {}),
    "cait": ("cait_xxs24_224", 224, {}),
    "coat": ("coat_tiny", 224, {}),
    "convit": ("convit_tiny", 224, {}),
    "convmixer": ("convmixer_768_32", 160, {}),
    "convnext": ("convnext_atto", 160, {}),
    "cpubone": ("cpubone_nano", 160, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 256, {}),
    "cspnet": ("cs3darknet_focus_s", 160, {}),
    "cspnext": ("cspnext_tiny", 160, {}),
    "davit": ("davit_tiny", 160, {}),
    "deepseek_vit": ("deepseek_vit_412m", 224, SMALL),
    "deit": ("deit_tiny_patch16_224", 224, {}),
    "densenet": ("densenet121", 160, {}),
    "dla": ("dla34", 160, {}),
    "dpn": ("dpn48b", 160, {}),
    "edgenext": ("edgenext_xx_small", 160, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "efficientnet": ("tinynet_e", 106, {}),
    "efficientvim": ("efficientvim_m1", 160, {}),
    "efficientvit_mit": ("efficientvit_b0", 160, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 256, {}),
    "fasternet": ("fasternet_t0", 160, {}),
    "fastvit": ("fastvit_t8", 160, {}),
    "focalnet": ("focalnet_tiny_srf", 160, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "gemma4_vit": ("gemma4_vit_167m", 224, SMALL),
    "ghostnet": ("ghostnet_050", 160, {}),
    "hardcorenas": ("hardcorenas_b", 160, {}),
    "hgnet": ("hgnetv2_b0", 160, {}),
    "hiera": ("hiera_tiny_224", 224, {}),
    "hieradet_sam2": ("sam2_hiera_tiny", 160, {}),
    "hrnet": ("hrnet_w18_small", 160, {}),
    "iformer": ("iformer_t", 160, {}),
    "inception_next": ("inception_next_atto", 160, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 160, {}),
    "inception_v3": ("inception_v3", 160, {}),
    "inception_v4": ("inception_v4", 160, {}),
    "lcnetv2": ("lcnetv2_small", 160, {}),
    "levit": ("levit_128", 224, {}),
    "lowformer": ("lowformer_b0", 160, {}),
    "mambaout": ("mambaout_femto", 160, {}),
    "maxxvit": ("maxvit_pico_rw_256", 256, {}),
    "metaformer": ("poolformerv2_s12", 160, {}),
    "mlp_mixer": ("gmixer_12_224", 224, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 160, {}),
    "mobilevit": ("mobilevit_xxs", 160, {}),
    "mvitv2": ("mvitv2_tiny", 224, {}),
    "naflexvit": ("naflexvit_base_patch16_gap", 224, SMALL),
    "nest": ("nest_tiny", 224, {}),
    "nextvit": ("nextvit_small", 160, {}),
    "nfnet": ("nf_regnet_b0", 160, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pvt_v2": ("pvt_v2_b0", 160, {}),
    "qwen3_vit": ("qwen3_vit_88m", 224, SMALL),
    "rdnet": ("rdnet_tiny", 160, {}),
    "regnet": ("regnetx_002", 160, {}),
    "repghost": ("repghostnet_050", 160, {}),
    "repvit": ("repvit_m0_9", 160, {}),
    "res2net": ("res2net50_14w_8s", 160, {}),
    "resnest": ("resnest14d", 160, {}),
    "resnet": ("resnet18", 160, {}),
    "resnetv2": ("resnetv2_18", 160, {}),
    "rexnet": ("rexnet_100", 160, {}),
    "selecsls": ("selecsls42", 160, {}),
    "senet": ("legacy_seresnet18", 160, {}),
    "sequencer": ("sequencer2d_s", 224, {}),
    "shvit": ("shvit_s1", 160, {}),
    "sknet": ("skresnet18", 160, {}),
    "starnet": ("starnet_s050", 160, {}),
    "swiftformer": ("swiftformer_xs", 224, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 224, {}),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", 256, {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 224, {}),
    "tiny_vit": ("tiny_vit_5m_224", 160, {}),
    "tnt": ("tnt_s_legacy_patch16_224", 224, {}),
    "tresnet": ("tresnet_m", 160, {}),
    "twins": ("twins_svt_small", 224, {}),
    "visformer": ("visformer_tiny", 224, {}),
    "vision_transformer": ("vit_tiny_patch16_224", 224, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 224, {}),
    "vision_transformer_relpos": ("test_vit_relpos", 160, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 224, SMALL | dict(global_attn_indexes=(2,))),
    "vitamin": ("vitamin_small_224", 224, {}),
    "volo": ("volo_d1_224", 224, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 160, {}),
    "xception": ("legacy_xception", 160, {}),
    "xception_aligned": ("xception41p", 160, {}),
    "xcit": ("xcit_nano_12_p16_224", 224, {}),
}
FAMILIES = {"torchvision": TORCHVISION, "timm": TIMM}


def build(library, name, options):
    """An untrained model, always the same one."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False, **options)
    else:
        from torchvision.models import get_model

        model = get_model(name, weights=None, **options)
    draw_zeroed_weights(model, std=0.02)
    for m in model.modules():
        if isinstance(m, nn.Linear) and m.bias is not None:  # by chance it outweighs what an untrained network sees
            nn.init.zeros_(m.bias)
    return model


def blurred_noise(side):
    """A picture with something in it, not the same everywhere."""
    coarse = torch.randn(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def verified(model, layer, x):
    """What a measurement says of the reading that was found: "agrees", "unsure", or which other one it finds."""
    try:
        layout = verify_layout(model, layer.module, x, like=layer.shape)
    except ValueError:  # untrained networks mix places, or hardly notice what is changed
        return "unsure"
    numbers = torch.arange(float(torch.Size(layer.shape).numel())).view(layer.shape)
    return "agrees" if layout.reshape_transform(numbers).equal(layer.reshape(numbers)) else str(layout)


def row(library, family, model, verify=False):
    """A row of the table; with `verify`, and what a measurement says of the layout: that doubles the time."""
    name, side, options = FAMILIES[library][family]
    x = blurred_noise(side)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    found = dict(
        library=library,
        version=version(library),
        family=family,
        model=name,
        options=" ".join(f"{k}={v}" for k, v in options.items()),
        side=side,
        parameters=f"{millions:.1f} M",
    )
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            start = time.perf_counter()
            cam = GradCAM(model)
            heat = cam(x)
            seconds = time.perf_counter() - start
        layer = next(layer for layer in list_layers(model, x) if layer.module is cam.target_layers[0])
        found |= dict(
            layer=layer.name,
            shape=" × ".join(map(str, layer.shape)),
            transform=getattr(layer.reshape, "func", layer.reshape).__name__,
            grid=" × ".join(map(str, layer.grid)),
            seconds=f"{seconds:.2f}",
            verified=verified(model, layer, x) if verify else "",
        )
        blank = [str(w.message) for w in said if "blank" in str(w.message)]
        return found | dict(problem="" if heat.max() > heat.min() else "constant: " + "; ".join(blank))
    except Exception as error:
        return found | dict(layer="", shape="", transform="", grid="", seconds="", verified="", problem=f"{type(error).__name__}: {error}")


def runs_of_explain(side, model):
    """How often the model runs while a scene is explained, with nothing told: the first time, and once the layout is known."""
    runs = []
    model.register_forward_hook(lambda *call: runs.append(1))

    def asked():
        runs.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explain("scene:3", model, preprocess=Preprocess((side, side)), upscale=True)
        return len(runs)

    first = asked()
    return first, first if first == 1 else asked()


def known_families(library):
    """Those that the installed version knows."""
    if library == "timm":
        import timm

        return [family for family, (name, _, _) in TIMM.items() if timm.is_model(name)]
    return list(TORCHVISION)


def models(library):
    """Each family, the side of its picture, its model."""
    for family in known_families(library):
        name, side, options = FAMILIES[library][family]
        yield family, side, build(library, name, options)


def rows(library, verify=False):
    """All rows of a library."""
    return [row(library, family, model, verify) for family, _, model in models(library)]


@cache
def rows_and_runs(library):
    """All rows of a library, and the runs of each family; a model is built once, and what is learnt of a copy is not known of it."""
    found, runs, remember = [], {}, {}
    for family, side, model in models(library):
        copied = deepcopy(model)
        runs[family] = runs_of_explain(side, copied)
        before = states(copied.eval())
        with torch.no_grad():
            copied(blurred_noise(side))  # as a user runs it: nothing is put back
        remember[family] = {type(m) for m, state in states(copied).items() if forgets(type(m)) and state != before[m]}
        found.append(row(library, family, model))
    return found, runs, remember


def states(model):
    """What a module holds, each thing by its identity, and how often its buffers were written to."""
    own = {"training", "forward", "_forward_hooks"}
    return {
        m: (
            {name: id(value) for name, value in vars(m).items() if name not in own},
            [(id(buffer), buffer._version) for buffer in m._buffers.values() if buffer is not None],
        )
        for m in model.modules()
    }


def stored():
    """The book's table."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check(library):
    """Nearly all work; and the book says so, if it was made with the same version of the library."""
    found, _, _ = rows_and_runs(library)
    failing = [f"{r['model']}: {r['problem']}" for r in found if r["problem"]]
    assert len(failing) <= 0.05 * len(found), failing
    book = {r["family"]: r for r in stored() if r["library"] == library}
    if any(r["version"] != version(library) for r in book.values()):
        return
    anew = "run python tests/zoo.py, which writes the table anew"
    assert [r["family"] for r in found] == list(book), anew
    differ = []
    for r in found:
        told = book[r["family"]]
        for key in ("model", "layer", "shape", "transform", "grid", "problem"):
            if r[key] != told[key]:
                differ.append(f"{r['model']}, {key}: {r[key]}, in the book {told[key]}")
    assert not differ, f"{anew}: {differ}"


def check_layouts(library):
    """A measurement agrees with the layout that was found, for most; it never finds another one."""
    found = rows(library, verify=True)
    agreed = [r for r in found if r["verified"] == "agrees"]
    print(f"{library}: the layer's layout is verified for {len(agreed)} of {len(found)} families")
    assert not [(r["model"], r["verified"]) for r in found if r["verified"] not in ("agrees", "unsure", "")]
    assert len(agreed) >= 0.75 * len(found)


def check_runs(library):
    """One run for each family but those that are named here, with the reason; the first time more where the layout is measured."""
    twice = {"coat"}  # its last layer is a convolution that every block shares, so its first calls come long before the end
    _, runs, _ = rows_and_runs(library)
    assert {family for family, (_, again) in runs.items() if again != 1} <= twice, runs
    measured = {family: first - again for family, (first, again) in runs.items() if first > again}
    print(f"{library}: the layout is measured for {len(measured)} of {len(runs)} families, in runs: {measured}")
    assert len(measured) <= 0.25 * len(runs), measured


def check_forgetful(library):
    """What is passed over when a visit begins, because it remembers nothing, does not change in a run."""
    _, _, remember = rows_and_runs(library)
    assert {family: kinds for family, kinds in remember.items() if kinds} == {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = [r for library in FAMILIES for r in rows(library)]
    with open(TABLE, "w", newline="", encoding="utf-8") as file:
        fields = [key for key in table[0] if key != "verified"]
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for r in table:
        if r["problem"]:
            print(r["library"], r["model"], r["problem"])
    explained = [r for r in table if not r["problem"]]
    print(f"{len(table)} families, {len(explained)} explained")
