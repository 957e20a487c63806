"""Networks of the table that are refused, or wrong for a known reason.

By name and check, "all" for every check. An entry of KNOWN_FAILURES that is right now fails its test and must be deleted.
"""

from __future__ import annotations

REFUSALS: dict[str, dict[str, str]] = {}

_CHANNELS = "the number of channels is read from the first convolution, which is behind a rearrangement of the pixels"
_SINGLE = {"saliency": "PyTorch's gradient of a batch norm is wrong for a single image in some memory layouts, on the CPU"}
_CLASSES = ("prediction", "occlusion", "saliency", "integrated gradients")
_FIRST = dict.fromkeys(_CLASSES, "the first tensor of the output is taken")
_PROBABILITIES = dict.fromkeys(
    ("prediction", "occlusion"), "the output, which is already a probability, gets another softmax"
)

KNOWN_FAILURES: dict[str, dict[str, str]] = {
    "dict: mask, logits": _FIRST,
    "tuple: loss, logits": _FIRST,
    "tuple: features, logits": _FIRST,
    "softmax, then clamp": _PROBABILITIES,
    "mean of two softmaxes": _PROBABILITIES,
    "regression": dict.fromkeys(("prediction", "occlusion"), "the sigmoid of the value is shown"),
    "batch statistics": dict.fromkeys(("occlusion", "integrated gradients"), "several images share a batch"),
    "one image at a time": dict.fromkeys(("occlusion", "integrated gradients"), "several images share a batch"),
    "random in evaluation": dict.fromkeys(("prediction", "occlusion", "integrated gradients"), "each pass is another one"),
    "squeeze at the end": dict.fromkeys(_CLASSES, "the classes are taken for images"),
    "reentrant checkpointing": dict.fromkeys(("saliency", "integrated gradients"), "a RuntimeError of PyTorch"),
    "several answers per image": dict.fromkeys(_CLASSES, "the mean over the wrong dimension is taken"),
    "argmax at the end": dict.fromkeys(_CLASSES, "a NotImplementedError of PyTorch"),
    "batch norm, then tokens": _SINGLE,
    "batch norm, then mean of tokens": _SINGLE,
    "functional batch norm, then attention": _SINGLE,
    "tresnet_m": {"all": _CHANNELS},
    "csatv2": {"all": _CHANNELS},
    "ghostnet_050": {"receptive fields": "some channels of a concatenation see less than their layer"},
    "levit_128s": _SINGLE,
    "efficientformer_l1": _SINGLE,
    "efficientvit_m0": _SINGLE,
    "xcit_nano_12_p16_224": _SINGLE,
    "iformer_t": _SINGLE,
}
