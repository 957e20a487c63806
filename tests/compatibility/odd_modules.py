"""Small modules whose forward pass or output is unusual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .checks import Case, same

SIZE = 32


class Small(nn.Module):
    """Two convolutions, mean, linear; subclasses change one thing."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.middle, self.fc = nn.Identity(), nn.Linear(8, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.middle(self.a(x)).relu()).relu()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * self.fc(self.features(x).mean((2, 3)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x)


class DictOutput(Small):
    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mask": self.mask(self.features(x)), "logits": self.logits(x)}


class LossFirst(Small):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(x)
        return logits.logsumexp(1).mean(), logits


class FeaturesFirst(Small):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features(x).mean((2, 3)), self.logits(x)


@dataclass
class Prediction:
    """As Hugging Face returns it, but without being a dict."""

    hidden: torch.Tensor
    logits: torch.Tensor


class DataclassOutput(Small):
    def forward(self, x: torch.Tensor) -> Prediction:
        return Prediction(self.features(x), self.logits(x))


class Softmax(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).softmax(1)


class LogSoftmax(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).log_softmax(1)


class ClampedSoftmax(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).softmax(1).clamp(1e-6, 1)


class MeanOfSoftmaxes(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.logits(x).softmax(1) + self.logits(x.flip(3)).softmax(1)) / 2


class MultiLabel(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).sigmoid()


class OneScore(Small):
    def __init__(self) -> None:
        super().__init__(classes=1)


class Regression(Small):
    """An age: one number without bounds."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 60 + self.logits(x)


class BatchStatistics(Small):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.BatchNorm2d(8, track_running_stats=False)


class OneImageOnly(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.features(x)
        return 20 * self.fc(maps.view(1, 8, -1).mean(2))


class RandomInEvaluation(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.logits(x), 0.5)


class Squeeze(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).squeeze()


class Segmentation(Small):
    """A map of scores for each class; the scores of the image are their means."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.fc(self.features(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(20 * maps, x.shape[2:], mode="bilinear")


class FunctionalPooling(Small):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.a(x).relu(), 2)
        return F.avg_pool2d(self.b(x).relu(), 3, 2, 1, count_include_pad=False)


class Halves(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x).relu()
        return y[:, :4], y[:, 4:]


class TupleLayers(Small):
    def __init__(self) -> None:
        super().__init__()
        self.halves = Halves()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.halves(self.a(x))
        return self.b(torch.cat([second, first], 1)).relu()


class Checkpointing(Small):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        y = checkpoint(self.a, x, use_reentrant=True).relu()
        return checkpoint(self.b, y, use_reentrant=True).relu()


class ClassToken(nn.Module):
    """A small vision transformer; the scores are read from the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return 5 * self.head(tokens[:, 0])


class NormThenTokens(Small):
    """PyTorch's gradient of a batch norm is wrong here for a single image, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.token_norm = nn.BatchNorm2d(8), nn.LayerNorm(8)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.token_norm(self.norm(self.b(self.a(x).relu())).flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, (SIZE // 2, SIZE // 2)).relu()


class NormThenMean(NormThenTokens):
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * self.fc(self.norm(self.b(self.a(x).relu())).flatten(2).transpose(1, 2).mean(1))


class FunctionalNorm(NormThenTokens):
    """A batch norm that is not a module, before attention."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.b(self.a(x).relu())
        maps = F.batch_norm(maps, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return tokens.transpose(1, 2).unflatten(2, (SIZE // 2, SIZE // 2)).relu()


class SpaceToDepth(Small):
    """The first convolution does not have the channels of the image."""

    def __init__(self) -> None:
        super().__init__(channels=12)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(F.pixel_unshuffle(x, 2))


class RnnHead(Small):
    """The columns of the maps are a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(16, 5)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        sequence, _ = self.rnn(self.features(x).mean(2).transpose(1, 2))
        return 20 * self.fc(sequence[:, -1])


class Sequences(Small):
    """Several answers for an image, each with its own classes, are not class scores."""

    def __init__(self) -> None:
        super().__init__(classes=12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).unflatten(1, (3, 4))


class Decision(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x).argmax(1)


class SixChannels(Small):
    def __init__(self) -> None:
        super().__init__(channels=6)


def gray_digits() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )


def _own_logits(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return module.logits(batch)  # type: ignore[operator]


def odd_cases() -> Iterator[Case]:
    def case(name: str, build: Any, size: int = SIZE, channels: int = 3, **options: Any) -> Case:
        return Case(name, "odd module", build, (size, size), channels, **{"pairs": False, **options})

    yield case("dict: mask, logits", DictOutput, scores=lambda output: output["logits"])
    yield case("dataclass with logits", DataclassOutput, scores=lambda output: output.logits)
    yield case("tuple: loss, logits", LossFirst, scores=lambda output: output[1])
    yield case("tuple: features, logits", FeaturesFirst, scores=lambda output: output[1])
    yield case(
        "tuple: features, logits; output=1",
        FeaturesFirst,
        scores=lambda output: output[1],
        options={"output": 1},
        remark="with `Network(module, output=1)`",
    )
    yield case("softmax at the end", Softmax, values=same, logits=_own_logits)
    yield case("log softmax at the end", LogSoftmax, values=torch.exp, logits=_own_logits)
    yield case("softmax, then clamp", ClampedSoftmax, values=same)
    yield case("mean of two softmaxes", MeanOfSoftmaxes, values=same)
    yield case("sigmoid for each label", MultiLabel, values=same, logits=_own_logits, remark="independent probabilities")
    yield case(
        "logit for each label",
        Small,
        values=torch.sigmoid,
        options={"output_kind": "independent logits"},
        remark='with `Network(module, output_kind="independent logits")`',
    )
    yield case("one score", OneScore, values=same, remark="a value")
    yield case(
        "one logit",
        OneScore,
        values=torch.sigmoid,
        options={"output_kind": "independent logits"},
        remark='with `Network(module, output_kind="independent logits")`',
    )
    yield case("regression", Regression, values=same, remark="a value")
    yield case("batch statistics", BatchStatistics)
    yield case("one image at a time", OneImageOnly)
    yield case(
        "random in evaluation",
        RandomInEvaluation,
        random=True,
        forward_passes=6,
        remark="the same random numbers in every pass",
    )
    yield case("squeeze at the end", Squeeze, scores=lambda output: output[None])
    yield case("segmentation", Segmentation, scores=lambda output: output.mean((2, 3)))
    yield case("functional pooling", FunctionalPooling)
    yield case("layers that return tuples", TupleLayers)
    yield case("reentrant checkpointing", Checkpointing)
    yield case("class token", ClassToken)
    yield case("recurrent head", RnnHead)
    yield case("batch norm, then tokens", NormThenTokens, pairs=True)
    yield case("batch norm, then mean of tokens", NormThenMean, pairs=True)
    yield case("functional batch norm, then attention", FunctionalNorm, pairs=True)
    yield case("several answers per image", Sequences, scores=lambda output: output[:, 0])
    yield case(
        "several answers per image; output=",
        Sequences,
        scores=lambda output: output[:, 0],
        options={"output": lambda output: output[:, 0]},
        remark="with `Network(module, output=lambda output: output[:, 0])`",
    )
    yield case("argmax at the end", Decision, scores=lambda output: output.float()[:, None])
    yield case("gray, 28x28", gray_digits, 28, 1)
    yield case("space to depth", SpaceToDepth, options={"channels": 3}, remark="with `Network(module, channels=3)`")
    yield case("six channels", SixChannels, channels=6)
