"""Networks by name: weight files of torchvision, timm and transformers."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision import models

from convis_widgets.core.network import pretrained
from convis_widgets.core.network.network import Network

NAME = "squeezenet1_1"


class Evil:
    """Code in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('this code must never run')",))


def weight_bytes(state: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return models.squeezenet1_1().state_dict()


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a file into torch.hub's cache, under the name of a published file with the given content."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(content: bytes, published_content: bytes | None = None) -> Path:
        digest = hashlib.sha256(content if published_content is None else published_content).hexdigest()[:8]
        path = folder / f"{NAME}-{digest}.pth"
        monkeypatch.setattr(
            models.SqueezeNet1_1_Weights.DEFAULT.value, "url", f"https://download.pytorch.org/models/{path.name}"
        )
        path.write_bytes(content)
        return path

    return put


def same_weights(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    found = module.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[key], value) for key, value in state.items())


def test_published_file_is_loaded_without_a_warning(publish: Callable[..., Path], state: dict[str, torch.Tensor]) -> None:
    for legacy in (False, True):
        publish(weight_bytes(state, legacy=legacy))
        module, transform, labels = pretrained.load_pretrained(NAME)
        assert same_weights(module, state)
        assert (transform.size, transform.resize, len(labels)) == ((224, 224), 256, 1000)


def test_file_that_is_not_the_published_one_is_reported_once(
    publish: Callable[..., Path], state: dict[str, torch.Tensor]
) -> None:
    changed = state | {"classifier.1.bias": -state["classifier.1.bias"]}
    path = publish(weight_bytes(changed), weight_bytes(state))
    with pytest.warns(UserWarning, match="not the file that torchvision published.*delete it and download") as caught:
        pretrained.load_pretrained(NAME)
    assert str(path) in str(caught[0].message)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrained.load_pretrained(NAME)
        path.write_bytes(weight_bytes(changed | {"classifier.1.bias": state["classifier.1.bias"] + 1}) + b"\0" * 9)
        with pytest.raises((UserWarning, ValueError), match=path.name):
            pretrained.load_pretrained(NAME)


def flip_bytes(data: bytes, random: np.random.Generator) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    places = random.integers(0, len(array), random.integers(1, 5))
    array[places] ^= random.integers(1, 256, len(places), dtype=np.uint8)
    return array.tobytes()


def flip_bytes_of_the_header(data: bytes, random: np.random.Generator) -> bytes:
    return flip_bytes(data[:4000], random) + data[4000:]


def flip_bytes_of_the_end(data: bytes, random: np.random.Generator) -> bytes:
    return data[:-6000] + flip_bytes(data[-6000:], random)


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(0, len(data))]


def overwrite_a_part(data: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(0, len(data)))
    return data[:start] + bytes(int(random.integers(1, 5000))) + data[start:]


DAMAGES = (flip_bytes, flip_bytes_of_the_header, flip_bytes_of_the_end, truncate, overwrite_a_part)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_an_error_with_its_path(
    damage: Callable[[bytes, np.random.Generator], bytes],
    legacy: bool,
    publish: Callable[..., Path],
    state: dict[str, torch.Tensor],
) -> None:
    intact, random = weight_bytes(state, legacy=legacy), np.random.default_rng(len(damage.__name__))
    for _ in range(15):
        damaged = damage(intact, random)
        path = publish(damaged, intact)
        if damaged != intact:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                with pytest.raises((ValueError, UserWarning)) as caught:
                    pretrained.load_pretrained(NAME)
            assert str(path) in str(caught.value)
        path = publish(damaged)  # as if it had been published like this
        error = None
        try:
            module, _, _ = pretrained.load_pretrained(NAME)
        except ValueError as caught_error:
            error = caught_error
        if error is not None:
            assert str(path) in str(error)
            continue
        expected = torch.load(io.BytesIO(damaged), weights_only=True)
        for key, found in module.state_dict().items():
            assert torch.equal(found.nan_to_num(), expected[key].to(found.dtype).nan_to_num())


def without(state: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    "content",
    [
        lambda state: weight_bytes(state | {"features.0.weight": Evil()}),
        lambda state: weight_bytes(state | {"features.0.weight": Evil()}, legacy=True),
        lambda state: weight_bytes(Evil()),
        lambda state: pickle.dumps(Evil()),
        lambda state: weight_bytes(models.alexnet),
        lambda state: weight_bytes(without(state, "features.0.bias")),
        lambda state: weight_bytes(state | {"surplus": torch.zeros(1)}),
        lambda state: weight_bytes(state | {"features.0.bias": state["features.3.squeeze.bias"]}),
        lambda state: weight_bytes(state | {"features.0.bias": [0.0] * 64}),
        lambda state: weight_bytes(state | {"features.0.bias": None}),
        lambda state: weight_bytes({0: torch.zeros(2)}),
        lambda state: weight_bytes(list(state.values())),
        lambda state: weight_bytes(None),
        lambda state: b"",
        lambda state: b"<html>404</html>",
        lambda state: b"PK\x05\x06" + bytes(18),
    ],
)
def test_file_with_other_content_is_an_error_and_runs_no_code(
    content: Callable[[Any], bytes], publish: Callable[..., Path], state: dict[str, torch.Tensor]
) -> None:
    data = content(state)
    path = publish(data)
    with pytest.raises(ValueError) as caught:
        pretrained.load_pretrained(NAME)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    path = publish(data, b"another")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=path.name):
            pretrained.load_pretrained(NAME)


def test_weights_of_another_precision_are_converted(publish: Callable[..., Path], state: dict[str, torch.Tensor]) -> None:
    publish(weight_bytes({key: value.double() for key, value in state.items()}))
    assert same_weights(pretrained.load_pretrained(NAME)[0], state)


# -- timm and transformers -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, without a connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put_into_hub_cache(cache: Path, repository: str, name: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / ("0" * 40) / name


def test_timm_network_by_name_is_read_from_the_cache(hub_cache: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = timm.create_model("test_resnet").eval()
    path = put_into_hub_cache(hub_cache, "timm/test_resnet.r160_in1k", "model.safetensors")
    save_file(module.state_dict(), path)
    net = Network.ensure("timm/test_resnet")
    assert Network.ensure("timm/test_resnet") is net
    assert (net.name, net.transform.size, net.transform.resize, net.labels[1]) == (
        "timm/test_resnet",
        (160, 160),
        168,
        "goldfish",
    )
    batch = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(net(batch), module((batch - 0.5) / 0.5), atol=1e-5)
    data = path.read_bytes()
    path.write_bytes(data[:1000])
    with pytest.raises(ValueError, match=r"timm/test_resnet\.r160_in1k cannot be loaded"):
        Network.ensure("timm/test_resnet.r160_in1k")
    path.unlink()
    put_into_hub_cache(hub_cache, "timm/test_resnet.r160_in1k", "pytorch_model.bin").write_bytes(weight_bytes(Evil()))
    with pytest.raises(ValueError, match=r"timm/test_resnet\.r160_in1k cannot be loaded"):
        Network.ensure("timm/test_resnet.r160_in1k")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("timm/test_resnet", FileNotFoundError, "timm/test_resnet.*not on this machine"),
        ("timm/test_resnt", ValueError, "timm has no such network; did you mean.*test_resnet"),
        ("timm/test_resnet.nothing", ValueError, "nothing"),
        ("microsoft/resnet-50", ImportError, "pip install transformers"),
    ],
)
def test_hub_name_that_cannot_be_loaded(
    name: str, error: type[Exception], message: str, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(error, match=message):
        Network.ensure(name)


def test_name_of_a_weight_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"mine\.pth.*is a file.*give the module"):
        Network.ensure(str(path))


class Classifier(nn.Module):
    """A module with the attributes of a classifier of transformers."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 4)
        self.config = SimpleNamespace(**{"id2label": {0: "cat", 1: "dog", 2: "owl"}, "num_channels": 3} | config)

    def forward(self, pixel_values: torch.Tensor, labels: Any = None) -> Any:
        return SimpleNamespace(logits=self.conv(pixel_values).mean((2, 3)))


def test_classifier_of_transformers_has_its_labels_and_its_size() -> None:
    net = Network(Classifier(image_size=48))
    assert (net.labels, net.transform.size, net.transform.guessed) == (("cat", "dog", "owl"), (48, 48), ("mean", "std"))
    no_size = Network(Classifier(id2label={"1": "dog", "0": "cat", "2": "owl"}))
    assert (no_size.labels, no_size.transform.guessed) == (("cat", "dog", "owl"), ("size", "mean", "std"))
    assert Network(Classifier(id2label={0: "cat", 1: "dog"}), size=32).labels[0] == "class 0"


@pytest.mark.parametrize(
    ("processor", "size", "resize", "mean"),
    [
        ({"size": {"height": 48, "width": 64}}, (48, 64), (48, 64), 0.5),
        (
            {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True},
            (48, 48),
            64,
            0.5,
        ),
        ({"size": SimpleNamespace(shortest_edge=56), "crop_pct": 0.875}, (56, 56), 64, 0.5),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, (384, 384), (384, 384), 0.5),
        ({"size": 48, "do_normalize": False}, (48, 48), 48, 0.0),
        (None, (40, 40), None, 0.0),
    ],
)
def test_transformers_network_by_name_has_the_transform_of_its_image_processor(
    processor: dict[str, Any] | None,
    size: tuple[int, int],
    resize: Any,
    mean: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_processor(_name: str) -> Any:
        if processor is None:
            raise OSError("there is no preprocessor_config.json")
        usual = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3}
        return SimpleNamespace(**usual | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3} | processor)

    library = ModuleType("transformers")
    library.AutoModelForImageClassification = SimpleNamespace(from_pretrained=lambda _: Classifier(image_size=40))  # type: ignore[attr-defined]
    library.AutoImageProcessor = SimpleNamespace(from_pretrained=load_processor)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", library)
    net = Network.ensure("somebody/animals")
    assert (net.name, net.labels) == ("somebody/animals", ("cat", "dog", "owl"))
    assert (net.transform.size, net.transform.resize, set(net.transform.mean)) == (size, resize, {mean})
    assert net.transform.guessed == (("mean", "std") if processor is None else ())
