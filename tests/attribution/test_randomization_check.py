from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run, raise_if_stopped
from convis_widgets.techniques.attribution.randomization_check import (
    randomization_check,
    rank_correlation,
    structural_similarity,
)
from convis_widgets.techniques.attribution.saliency import saliency


class RecordingMethod:
    """A method that records the weights and the class of every call."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.targets: list[int] = []

    def __call__(self, net: Network, image: np.ndarray, *, target: int) -> Iterator[Frame]:
        self.states.append({name: value.clone() for name, value in net.module.state_dict().items()})
        self.targets.append(target)
        yield Frame(1, 2, heat=np.zeros(image.shape[:2]))
        yield from saliency(net, image, target=target)


def changed_modules(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name.rpartition(".")[0] for name in a if not torch.equal(a[name], b[name])}


def run_check(module: nn.Module, size: int = 16, channels: int = 3, **kwargs: Any) -> tuple[RecordingMethod, Frame]:
    """The weights at every stage, and the last Frame."""
    recorder = RecordingMethod()
    net = Network(module, size=size, channels=channels)
    image = np.random.default_rng(0).random((size, size, channels)).astype(np.float32)
    return recorder, Run(randomization_check(net, image, method=recorder, **kwargs)).run()


def test_randomization_check_randomizes_layers_from_output_down(tiny_module: nn.Module) -> None:
    recorder, frame = run_check(tiny_module)
    states = recorder.states
    assert frame.arrays["stages"].tolist() == ["", "fc", "side", "conv2", "conv1"]
    for stage, names in enumerate([{"fc"}, {"side"}, {"conv2"}, {"conv1"}]):
        assert changed_modules(states[stage], states[stage + 1]) == names
    assert not changed_modules(states[0], tiny_module.state_dict())


def test_randomization_check_matches_reference_at_every_stage(tiny_module: nn.Module, image: np.ndarray) -> None:
    recorder = RecordingMethod()
    net = Network(tiny_module, size=16)
    frames = list(randomization_check(net, image, method=recorder))
    target = net.class_index(net.predict(image)[0][0])
    assert recorder.targets == [target] * 5
    for stage, state in enumerate(recorder.states):
        reference = copy.deepcopy(tiny_module)
        reference.load_state_dict(state)
        expected = next(saliency(Network(reference, size=16), image, target=target)).heat
        assert np.array_equal(frames[stage].heat, expected)
        for frame in frames[stage:]:
            assert np.array_equal(frame.arrays["maps"][stage], expected)
    first = frames[0].heat
    last = frames[-1]
    assert last.arrays["maps"].shape == (5, 16, 16)
    for stage, heat in enumerate(last.arrays["maps"]):
        assert last.arrays["rank correlation"][stage] == pytest.approx(spearman(np.abs(first), np.abs(heat)), abs=1e-9)
        assert last.arrays["ssim"][stage] == pytest.approx(reference_ssim(first, heat), abs=1e-5)
        scalars = frames[stage].scalars
        assert scalars == {name: last.arrays[name][stage] for name in ("rank correlation", "ssim")}
    assert frames[0].scalars == {"rank correlation": pytest.approx(1), "ssim": pytest.approx(1)}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy import stats  # a dependency of scikit-learn

    return float(stats.spearmanr(a.ravel(), b.ravel()).statistic)


def reference_ssim(a: np.ndarray, b: np.ndarray, side: int = 7) -> float:
    a, b = ((x - x.min()) / (x.max() - x.min()) for x in (a.astype(float), b.astype(float)))
    values = []
    for top in range(a.shape[0] - side + 1):
        for left in range(a.shape[1] - side + 1):
            x, y = (m[top : top + side, left : left + side].ravel() for m in (a, b))
            (xx, xy), (_, yy) = np.cov(x, y)
            value = (2 * x.mean() * y.mean() + 1e-4) * (2 * xy + 9e-4)
            values.append(value / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (xx + yy + 9e-4)))
    return float(np.mean(values))


def test_rank_correlation_matches_scipy_including_ties() -> None:
    rng = np.random.default_rng(0)
    for a, b in [
        (rng.random((9, 7)), rng.random((9, 7))),
        (rng.integers(0, 4, (9, 7)), rng.integers(0, 3, (9, 7))),
        (np.arange(6.0), -(np.arange(6.0) ** 3)),
    ]:
        assert rank_correlation(a, b) == pytest.approx(spearman(a, b), abs=1e-12)


def test_structural_similarity_matches_reference() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((12, 9))
    for b in (rng.random((12, 9)), a + 0.1 * rng.random((12, 9)), 1 - a, 5 * a - 2):
        assert structural_similarity(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-9)
    assert structural_similarity(a, 5 * a - 2) == pytest.approx(1)
    assert np.isfinite(structural_similarity(a[:2, :1], a[:2, 1:2]))


def test_randomization_check_similarity_of_constant_map_is_nan(tiny: Network, image: np.ndarray) -> None:
    def heats(value: float) -> Any:
        calls = iter([np.arange(256.0).reshape(16, 16), *[np.full((16, 16), value)] * 99])
        return lambda _net, _image, target: iter([Frame(1, 1, done=True, heat=next(calls))])

    for value in (3.0, np.nan):
        last = Run(randomization_check(tiny, image, method=heats(value))).run()
        assert last.step == 4
        for name in ("rank correlation", "ssim"):
            assert last.arrays[name][0] == pytest.approx(1)
            assert np.isnan(last.arrays[name][1:]).all()


def test_randomization_check_treats_nan_as_zero(tiny: Network, image: np.ndarray) -> None:
    whole = np.arange(256.0).reshape(16, 16)
    holes = np.where(whole < 99, np.nan, whole)
    maps = iter([whole, holes, np.nan_to_num(holes), whole, whole])
    last = Run(
        randomization_check(tiny, image, method=lambda _net, _image, target: iter([Frame(1, 1, heat=next(maps))]))
    ).run()
    assert last.arrays["rank correlation"][1] == last.arrays["rank correlation"][2] < 1


def test_randomization_check_redraws_weights_if_map_is_zero(image: np.ndarray) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        module[0].weight.copy_(module[0].weight.abs()), module[1].weight.copy_(module[1].weight.abs())
        module[1].bias.fill_(1.0)
    tries = 0
    for seed in range(6):  # for some of these seeds one draw of the last layer gives a zero map
        recorder = RecordingMethod()
        last = Run(randomization_check(Network(module, size=16), image, method=recorder, seed=seed)).run()
        assert all(heat.any() for heat in last.arrays["maps"])
        assert last.arrays["stages"].tolist() == ["", "1", "0"]
        assert changed_modules(recorder.states[0], recorder.states[1]) == {"1"}
        tries += len(recorder.states) - 3
    assert tries > 0


def test_randomization_check_redraws_all_randomized_layers_if_dead(image: np.ndarray) -> None:
    """A last layer drawn with low biases stays inactive for all small activations of the layers below."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        module[1].weight.abs_(), module[1].bias.fill_(1.0), module[0].weight.abs_()
    net = Network(module, size=16)

    def faint(net: Network, array: np.ndarray, *, target: int) -> Iterator[Frame]:
        return saliency(net, array * 1e-3, target=target)

    for seed in range(6):
        assert np.isfinite(Run(randomization_check(net, image, method=faint, seed=seed)).run().arrays["ssim"]).all()


def test_randomization_check_groups_layers_into_stages(image: np.ndarray) -> None:
    parts = [nn.Conv2d(3, 3, 3) for _ in range(7)]
    recorder, frame = run_check(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()), stages=3)
    assert frame.arrays["stages"].tolist() == ["", "6, 5, 4", "3, 2", "1, 0"]
    assert changed_modules(recorder.states[0], recorder.states[1]) == {"4", "5", "6"}
    assert changed_modules(recorder.states[1], recorder.states[2]) == {"2", "3"}
    assert changed_modules(recorder.states[2], recorder.states[3]) == {"0", "1"}


def test_randomization_check_uses_pytorch_default_initialization() -> None:
    conv, norm, fc = nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 40)
    with torch.no_grad():
        for part in (conv, norm, fc):
            for parameter in part.parameters():
                parameter.fill_(7)
        norm.running_mean.fill_(1)
        norm.running_var.fill_(2)
    recorder, _ = run_check(nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc))
    state = recorder.states[-1]
    for name, inputs in (("0", 27), ("5", 64)):  # uniform up to 1 / sqrt(inputs)
        weight = state[f"{name}.weight"] * inputs**0.5
        assert 0.98 < weight.abs().max() <= 1 + 1e-6
        assert weight.std() == pytest.approx(3**-0.5, rel=0.05)
    assert [float(state[f"1.{n}"].mean()) for n in ("weight", "bias", "running_mean", "running_var")] == [1, 0, 0, 1]


class Bare(nn.Module):
    """Has parameters outside of layers, and a head used only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)
        self.weight = nn.Parameter(5 + 2 * torch.rand(4000, 6))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.scale * (x @ self.weight.T)[:, :10] if not self.training else self.unused(x)


def test_randomization_check_bare_parameters_keep_mean_and_std() -> None:
    recorder, frame = run_check(Bare())
    assert frame.arrays["stages"].tolist() == ["", "Bare", "conv"]
    before, after = (recorder.states[i]["weight"] for i in (0, 1))
    assert not torch.equal(before, after)
    assert after.mean() == pytest.approx(float(before.mean()), abs=0.02)
    assert after.std() == pytest.approx(float(before.std()), rel=0.03)
    assert after.max() > before.max(), "drawn from a normal distribution, not uniform as before"


def test_randomization_check_skips_parameters_unused_in_forward() -> None:
    recorder, _ = run_check(Bare())
    assert torch.equal(recorder.states[0]["unused.weight"], recorder.states[-1]["unused.weight"])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_randomization_check_randomizes_weight_norm_parameters(norm: Any, image: np.ndarray) -> None:
    module = nn.Sequential(norm(nn.Conv2d(3, 40, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    scores = []

    def method(net: Network, array: np.ndarray, *, target: int) -> Iterator[Frame]:
        scores.append(net(net.batch(array))[0] - net.module[0].bias)
        yield from saliency(net, array, target=target)

    Run(randomization_check(Network(module, size=16), image, method=method)).run()
    assert abs(np.corrcoef(scores[0], scores[-1])[0, 1]) < 0.6


def test_randomization_check_randomizes_shared_weight_once() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    module[3].weight = module[1].weight
    recorder, frame = run_check(module, size=4, channels=1)
    assert frame.arrays["stages"].tolist() == ["", "3", "1"]
    first, second, third = recorder.states
    assert not torch.equal(first["3.weight"], second["3.weight"])
    assert torch.equal(second["3.weight"], second["1.weight"])
    assert torch.equal(second["1.weight"], third["1.weight"])
    assert not torch.equal(second["1.bias"], third["1.bias"])


class CustomInitLinear(nn.Linear):
    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape) + torch.rand(1) + torch.randint(9, (1,)))
            nn.init.trunc_normal_(self.bias)
            self.bias += torch.randperm(len(self.bias))


def test_randomization_check_is_seeded_and_preserves_global_rng(image: np.ndarray) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), CustomInitLinear(4, 5))
    states = torch.get_rng_state()

    def untouched(net: Network, array: np.ndarray, *, target: int) -> Iterator[Frame]:
        assert torch.equal(torch.get_rng_state(), states)
        yield from saliency(net, array, target=target)

    net = Network(module, size=16)
    once, again, other = (
        Run(randomization_check(net, image, method=untouched, seed=seed)).run().arrays["maps"] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), states)
    assert np.array_equal(once, again)
    assert np.array_equal(once[0], other[0])
    assert not any(np.array_equal(a, b) for a, b in zip(once[1:], other[1:], strict=True))


def state_bytes(module: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in module.state_dict().values()]


def test_randomization_check_stopped_early_leaves_module_bit_identical(tiny_module: nn.Module, image: np.ndarray) -> None:
    net = Network(tiny_module, size=16)
    before, prediction = state_bytes(tiny_module), net.predict(image)
    calls = 0

    def stops(net: Network, array: np.ndarray, *, target: int) -> Iterator[Frame]:
        nonlocal calls
        calls += 1
        if calls == 3:
            run.stop()
            raise_if_stopped()
        yield from saliency(net, array, target=target)

    run = Run(randomization_check(net, image, method=stops))
    run.run()
    assert (run.state, run.last.step) == ("stopped", 1)
    assert state_bytes(tiny_module) == before
    assert state_bytes(net.module) == before
    assert net.predict(image) == prediction


def test_randomization_check_works_in_inference_mode(tiny: Network, image: np.ndarray) -> None:
    expected = Run(randomization_check(tiny, image)).run().arrays["maps"]
    with torch.inference_mode():
        assert np.allclose(Run(randomization_check(tiny, image)).run().arrays["maps"], expected)


def test_randomization_check_is_unaffected_by_concurrent_training(tiny_module: nn.Module, image: np.ndarray) -> None:
    frames = randomization_check(Network(tiny_module, size=16), image)
    first = next(frames).heat
    with torch.no_grad():
        for parameter in tiny_module.parameters():
            parameter.zero_()
    later = list(frames)
    assert np.array_equal(later[-1].arrays["maps"][0], first)
    assert later[0].heat.any()


def test_randomization_check_propagates_method_error(image: np.ndarray) -> None:
    options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    net = Network(torchvision.models.VisionTransformer(image_size=16, patch_size=4, **options))
    with pytest.raises(ValueError, match="ReLU"):
        next(randomization_check(net, image, method="guided_backprop"))
    names = Run(randomization_check(net, image, stages=99)).run().arrays["stages"].tolist()
    assert names[1] == "heads.head"
    assert names[-1] == "conv_proj"
    assert set(names) > {"VisionTransformer", "encoder", "encoder.layers.encoder_layer_0.self_attention"}


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("salience", ValueError, r"'salience'.*\bsaliency\b"),
        ("activations", TypeError, "activations.*'target'"),
        (3, TypeError, "method=3"),
        (lambda _net, _image, target: iter([]), ValueError, "lambda.*saliency"),
        (
            lambda _net, _image, target: iter([Frame(1, heat=np.ones((4, 8)))]),
            ValueError,
            "4x8.*16x16",
        ),
    ],
)
def test_randomization_check_rejects_invalid_method(
    tiny: Network, image: np.ndarray, method: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        next(randomization_check(tiny, image, method=method))


def test_randomization_check_rejects_network_without_parameters(image: np.ndarray) -> None:
    net = Network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16, channels=3)
    with pytest.raises(ValueError, match="(?i)parameters"):
        next(randomization_check(net, image))
