"""Networks of torchvision and timm, untrained, the smallest members of as many families as possible."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import timm
import timm.data
import torchvision
from torch import nn

from .checks import Case

# name: length of the sides of the input
TORCHVISION: dict[str, int] = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "densenet169": 64, "efficientnet_b0": 64, "efficientnet_b1": 64,
    "efficientnet_b2": 64, "efficientnet_b3": 64, "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 75,
    "mnasnet0_5": 64, "mnasnet0_75": 64, "mnasnet1_0": 64, "mnasnet1_3": 64, "mobilenet_v2": 64, "mobilenet_v3_large": 64,
    "mobilenet_v3_small": 64, "regnet_x_400mf": 64, "regnet_x_800mf": 64, "regnet_x_1_6gf": 64, "regnet_y_400mf": 64,
    "regnet_y_800mf": 64, "regnet_y_1_6gf": 64, "resnet18": 64, "resnet34": 64, "resnet50": 64, "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_0": 64, "shufflenet_v2_x1_5": 64, "shufflenet_v2_x2_0": 64,
    "squeezenet1_0": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11": 32, "vgg11_bn": 32, "vgg13": 32,
    "vgg13_bn": 32, "vgg16_bn": 32, "vit_b_32": 64, "vit_b_16": 32,
}  # fmt: skip

# family (the file in timm.models): name, length of the sides of the input, options of timm.create_model
TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vision_transformer": ("vit_tiny_patch16_224", 64, {"img_size": 64}),
    "byobnet": ("repvgg_a0", 64, {}),
    "beit": ("beit_base_patch16_224", 64, {"img_size": 64, "embed_dim": 96, "num_heads": 3, "depth": 4}),
    "byoanet": ("botnet26t_256", 64, {"img_size": 64}),
    "metaformer": ("poolformerv2_s12", 64, {}),
    "cait": ("cait_xxs24_224", 64, {"img_size": 64, "depth": 6}),
    "coat": ("coat_lite_tiny", 64, {"img_size": 64}),
    "maxxvit": ("coatnet_nano_rw_224", 64, {"img_size": 64}),
    "convit": ("convit_tiny", 64, {"img_size": 64}),
    "convmixer": ("convmixer_768_32", 64, {}),
    "convnext": ("convnext_atto", 64, {}),
    "crossvit": ("crossvit_9_240", 240, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "davit": ("davit_tiny", 64, {}),
    "deit": ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64}),
    "densenet": ("densenetblur121d", 64, {}),
    "dla": ("dla46_c", 64, {}),
    "nfnet": ("nf_regnet_b0", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "resnet": ("ecaresnet26t", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "efficientnet": ("mixnet_s", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "eva": ("eva02_tiny_patch14_224", 56, {"img_size": 56}),
    "fastvit": ("fastvit_t8", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 64, {"img_size": 64}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 64, {"img_size": 64}),
    "hardcorenas": ("hardcorenas_a", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 64, {"img_size": 64}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "inception_v4": ("inception_v4", 80, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 80, {}),
    "senet": ("legacy_seresnet18", 64, {}),
    "xception": ("legacy_xception", 64, {}),
    "levit": ("levit_128s", 224, {}),
    "mambaout": ("mambaout_femto", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 64, {"img_size": 64}),
    "nest": ("nest_tiny", 64, {"img_size": 64}),
    "nextvit": ("nextvit_small", 64, {}),
    "pit": ("pit_ti_224", 64, {"img_size": 64}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnety_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m0_9", 64, {}),
    "res2net": ("res2net50_14w_8s", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42b", 64, {}),
    "sequencer": ("sequencer2d_s", 56, {"img_size": 56}),
    "shvit": ("shvit_s1", 64, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s050", 64, {}),
    "swiftformer": ("swiftformer_xs", 64, {}),
    "swin_transformer": ("swin_s3_tiny_224", 56, {"img_size": 56}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 64, {"img_size": 64}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_ns_224", 64, {"img_size": 64}),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", 64, {"img_size": 64}),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "tnt": ("tnt_s_patch16_224", 64, {"img_size": 64}),
    "tresnet": ("tresnet_m", 64, {}),
    "twins": ("twins_svt_small", 64, {}),
    "visformer": ("visformer_tiny", 64, {"img_size": 64}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, {"img_size": 64}),
    "vitamin": ("vitamin_small_224", 64, {"img_size": 64}),
    "volo": ("volo_d1_224", 64, {"img_size": 64}),
    "xception_aligned": ("xception41", 64, {}),
    "xcit": ("xcit_nano_12_p16_224", 64, {"img_size": 64}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "fasternet": ("fasternet_t0", 64, {}),
    "iformer": ("iformer_t", 64, {}),
    "lowformer": ("lowformer_b0", 64, {}),
    "csatv2": ("csatv2", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "cpubone": ("cpubone_b0_bfrobust", 64, {}),
    "lcnetv2": ("lcnetv2_small", 64, {}),
    "naflexvit": ("naflexvit_base_patch16_gap", 64, {"img_size": 64, "depth": 2}),
}


def torchvision_cases() -> Iterator[Case]:
    for name, side in TORCHVISION.items():
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name == "inception_v3":
            options["aux_logits"] = False  # the auxiliary classifier needs a larger input
        if name.startswith("vit_"):
            options = {"image_size": side}
        yield Case(
            name,
            "torchvision",
            functools.partial(torchvision.models.get_model, name, weights=None, **options),
            (side, side),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )


def timm_cases() -> Iterator[Case]:
    for family, (name, side, options) in TIMM.items():
        config = timm.get_pretrained_cfg(name)
        yield Case(
            name,
            family,
            functools.partial(_create, name, options),
            (side, side),
            mean=tuple(config.mean),
            std=tuple(config.std),
            remark=", ".join(f"{key}={value}" for key, value in options.items() if key != "img_size"),
        )


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    return timm.create_model(name, pretrained=False, **options)
