"""Presets of `gradient_ascent`, with the constants of the papers and where they differ from them."""

from __future__ import annotations

from typing import Any

PRESET_DEFAULTS: dict[str, Any] = {
    "parameterization": "pixels",
    "optimizer": "gradient",
    "normalize": "none",
    "init": "noise",
    "noise": 10 / 255,
    "l2": 0.0,
    "log_prob_weight": 0.0,
    "jitter": 0.0,
    "rotate": 0.0,
    "scale": 0.0,
    "decay": 0.0,
    "blur": 0.0,
    "blur_every": 1,
    "clip_norm_fraction": 0.0,
    "clip_contribution_fraction": 0.0,
}
"""Settings that a preset does not name."""

PRESETS: dict[str, dict[str, Any]] = {
    # C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, https://distill.pub/2017/feature-visualization:
    # Fourier coefficients, decorrelated colors, jitter, rotation, scaling, Adam with a learning rate of 0.05. Theirs
    # maximizes the logit alone; ours adds the log probability, which suppresses competing classes
    "modern": {
        "parameterization": "fourier",
        "optimizer": "adam",
        "iterations": 256,
        "lr": 0.05,
        "log_prob_weight": 10.0,
        "jitter": 0.04,
        "rotate": 5.0,
        "scale": 0.1,
    },
    # K. Simonyan, A. Vedaldi, A. Zisserman, 2013, arXiv:1312.6034, section 2: the logit, from the zero image, with L2
    # regularization; no learning rate or weight is given, so these are ours
    "simonyan": {"init": "mean", "iterations": 200, "lr": 0.005, "normalize": "l2", "l2": 0.02},
    # CS231n, assignment 3: 100 steps of length 25, which is 25 x 0.225 / sqrt(3 x 224 x 224) = 0.0145 for each pixel; L2 of
    # 1e-3, which is 1e-3 / 0.225^2 = 0.02; jitter of 16 of 224 pixels; blur of 0.5 every 10 steps; noise of standard
    # deviation 1, which is 0.225. The assignment shifts by 0 to 16 pixels, ours by -16 to 16; it blurs after the steps 1,
    # 11, 21, ..., ours after 10, 20, 30, ...
    "cs231n": {
        "noise": 0.225,
        "iterations": 100,
        "lr": 0.0145,
        "normalize": "l2",
        "l2": 0.02,
        "jitter": 16 / 224,
        "blur": 0.5,
        "blur_every": 10,
    },
    # J. Yosinski et al., 2015, arXiv:1506.06579, Table 1, and their code. Its learning rates, a fixed one of 100 or steps
    # with a progress of 2, fit the gradients of CaffeNet; ours are the change of a pixel. The second preset decays by 0.3
    # per step, and the fourth keeps a tenth of the pixels in each step: plain gradient steps do not add up there and give
    # noisy or faint images, so we use Adam, which averages the last ten gradients or so. Theirs take 500, 750, 1000 and 1000
    # steps; ours 500, 200, 1000 and 300
    "yosinski 1": {
        "iterations": 500,
        "lr": 0.03,
        "normalize": "l2",
        "blur": 0.5,
        "blur_every": 4,
        "clip_norm_fraction": 0.5,
    },
    "yosinski 2": {"optimizer": "adam", "iterations": 200, "lr": 0.3, "decay": 0.3, "clip_norm_fraction": 0.2},
    "yosinski 3": {"iterations": 1000, "lr": 0.01, "normalize": "l2", "decay": 1e-4, "blur": 1.0, "blur_every": 4},
    "yosinski 4": {
        "optimizer": "adam",
        "iterations": 300,
        "lr": 0.1,
        "blur": 0.5,
        "blur_every": 4,
        "clip_contribution_fraction": 0.9,
    },
}
"""Settings by name of preset. The papers' pixels go from 0 to 255, or are divided by a standard deviation of about 0.225;
ours go from 0 to 1, minus the mean pixel. Weights of L2 are for class logits: an activation is much smaller, and its optimum
would be the mean image, so `l2` is 0 for other objectives unless it is given."""

CLASS_SETTINGS = {"l2": 0.0, "log_prob_weight": 0.0}
"""Settings of a preset that are for classes, and their values for other objectives."""


def preset_settings(preset: str, *, is_class: bool = True, **overrides: Any) -> dict[str, Any]:
    """All settings of a preset.

    Parameters
    ----------
    preset : str
    is_class : bool
        Whether a class is maximized, or another objective; see `CLASS_SETTINGS`.
    **overrides
        Settings that differ from the preset; None means as in the preset.

    Examples
    --------
    >>> preset_settings("simonyan", lr=0.01, l2=None)["lr"], preset_settings("simonyan", l2=None)["l2"]
    (0.01, 0.02)
    """
    settings = PRESET_DEFAULTS | PRESETS[preset] | ({} if is_class else CLASS_SETTINGS)
    return settings | {name: value for name, value in overrides.items() if value is not None}
