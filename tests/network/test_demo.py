"""Toyscape and the demo networks: the guarantees that the notebooks rely on."""

import subprocess
import sys
from collections import Counter
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression

from convis_widgets import demo
from convis_widgets.demo.figures import LABELS, PARTS
from convis_widgets.demo.net import DemoNet, pack, unpack
from convis_widgets.demo.toyscape import Toyscape
from convis_widgets.demo.train import Recipe, accuracy, disturb, fit, normalize, render, save

TEST_SEED = 20_240  # a seed that was not used in training


@pytest.fixture(scope="module")
def scenes():
    return Toyscape(1000, seed=TEST_SEED)[:]


@pytest.fixture(scope="module")
def heldout_data(scenes):
    return _tensor([scene.image for scene in scenes]), torch.tensor([scene.label for scene in scenes])


@pytest.fixture(scope="module")
def backgrounds():
    toyscape = Toyscape(1000, seed=TEST_SEED)
    return _tensor([toyscape.background(i) for i in range(len(toyscape))])


@pytest.fixture(scope="module")
def train_data():
    return render(Toyscape(1000, seed=TEST_SEED, split="train"), workers=2)


def _tensor(images):
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)


# Images


def test_scene_does_not_depend_on_other_scenes():
    few, many = Toyscape(8, seed=3), Toyscape(5000, seed=3)
    many[4000], many.background(5)
    for i in (7, 2, 5):
        assert np.array_equal(few[i].image, many[i].image)
        assert np.array_equal(few[i].mask, many[i].mask)
    assert np.array_equal(few[-1].image, many[7].image)


def test_scene_depends_on_seed_split_and_index():
    images = [
        Toyscape(20, seed=3)[2],
        Toyscape(20, seed=4)[2],
        Toyscape(20, seed=3, split="train")[2],
        Toyscape(20, seed=3)[12],
    ]
    assert len({image.image.tobytes() for image in images}) == 4


def test_scene_shapes_and_immutability(scenes):
    scene = scenes[0]
    assert scene.image.shape == (64, 64, 3)
    assert scene.image.dtype == np.float32
    assert scene.mask.shape == (64, 64)
    assert scene.mask.dtype == bool
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    assert scene.name == LABELS[scene.label] == "face"
    for array in (scene.image, scene.mask, *scene.parts.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0
    with pytest.raises(AttributeError):
        scene.label = 3
    assert len(repr(scene)) < 100


def test_toyscape_labels_are_balanced(scenes):
    assert len(LABELS) == 10
    assert Counter(scene.name for scene in scenes) == dict.fromkeys(LABELS, 100)
    assert [Toyscape(30).label(i) for i in range(30)] == [scene.label for scene in Toyscape(30)]


def test_toyscape_is_a_sequence():
    toyscape = Toyscape(6, seed=2)
    assert len(toyscape) == 6
    assert [scene.label for scene in toyscape[1:4]] == [1, 2, 3]
    assert repr(toyscape) == "Toyscape(6, seed=2, split='test', size=64)"
    with pytest.raises(IndexError, match=r"\b6\b"):
        toyscape[6]
    with pytest.raises(ValueError, match="validation.*train.*test"):
        Toyscape(6, split="validation")


def test_scene_parts_partition_the_mask(scenes):
    for scene in scenes:
        assert tuple(scene.parts) == PARTS[scene.name]
        assert np.array_equal(sum(part.astype(int) for part in scene.parts.values()), scene.mask)


def test_scene_parts_are_mostly_visible(scenes):
    visible = [part.any() for scene in scenes for part in scene.parts.values()]
    assert np.mean(visible) > 0.98


def test_scene_mask_is_where_image_differs_from_background(scenes):
    """A shadow scales all three color channels by the same factor below 1; any other difference is the figure."""
    toyscape, overlaps = Toyscape(1000, seed=TEST_SEED), []
    for i in range(0, 1000, 7):
        scene, behind = scenes[i], toyscape.background(i)
        # least-squares gray factor from the background to the image
        factor = (scene.image * behind).sum(-1) / np.maximum((behind**2).sum(-1), 1e-6)
        left = np.abs(scene.image - behind * np.minimum(factor, 1)[..., None]).max(-1)
        figure = left > 0.04
        wide = (
            np.asarray(Image.fromarray(scene.mask).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
        )  # thin tips extend beyond the mask
        clipped = (behind > 0.99).any(-1)
        assert not (figure & ~wide & ~clipped).any()
        overlaps.append((figure & scene.mask & ~clipped).sum() / max(1, (scene.mask & ~clipped).sum()))
    assert np.mean(overlaps) > 0.9


def test_toyscape_size_does_not_change_scene_or_mask():
    for i in range(10):
        small, large = Toyscape(10, seed=5)[i], Toyscape(10, seed=5, size=128)[i]
        halved = large.mask.reshape(64, 2, 64, 2).mean(axis=(1, 3)) >= 0.5
        assert (halved & small.mask).sum() / (halved | small.mask).sum() > 0.85
        assert np.abs(large.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)) - small.image).mean() < 0.08


def test_scene_figures_are_off_center_and_of_moderate_size(scenes):
    assert 0.4 < np.mean([scene.mask[32, 32] for scene in scenes]) < 0.6
    assert 0.14 < np.mean([scene.mask.mean() for scene in scenes]) < 0.22
    assert min(scene.mask.sum() for scene in scenes) > 60


def test_images_cycles_through_classes_or_returns_one_class():
    assert [scene.name for scene in demo.images()] == list(LABELS)
    fish = demo.images(3, label="fish")
    assert [scene.name for scene in fish] == ["fish"] * 3
    assert all(np.array_equal(a.image, b.image) for a, b in zip(fish, demo.images(3, label=4), strict=True))


@pytest.mark.parametrize("label", ["dog", 10, -1])
def test_images_error_lists_known_classes(label):
    with pytest.raises(ValueError, match=r"face, car, .*butterfly"):
        demo.images(label=label)


def test_demo_does_not_import_sklearn():
    code = "import sys; from convis_widgets.demo import Toyscape; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# No shortcuts: a classifier cannot learn the classes without shapes


def _color_histograms(images):
    """Fraction of each of 64 colors in each image."""
    codes = (images.long() // 64 * torch.tensor([16, 4, 1]).view(3, 1, 1)).sum(dim=1).flatten(1)
    return np.stack([np.bincount(row, minlength=64) for row in codes.numpy()]) / codes.shape[1] * 20


def _downsampled(images):
    """The images at 16 x 16."""
    return torch.nn.functional.avg_pool2d(images.float() / 255 - 0.5, 4).flatten(1).numpy()


@pytest.mark.parametrize("features", [_color_histograms, _downsampled])
def test_linear_classifiers_on_colors_or_pixels_fail(features, train_data, heldout_data):
    model = LogisticRegression(C=0.03, max_iter=300).fit(features(train_data[0]), train_data[1])
    assert model.score(features(heldout_data[0]), heldout_data[1]) < 0.4


def test_background_does_not_reveal_label(backgrounds, heldout_data):
    labels = heldout_data[1]
    model = LogisticRegression(C=0.03, max_iter=300).fit(_color_histograms(backgrounds[:500]), labels[:500])
    assert model.score(_color_histograms(backgrounds[500:]), labels[500:]) < 0.16
    for robust in (True, False):
        assert accuracy(demo.module(robust), backgrounds, labels) < 0.15


# Networks


@pytest.mark.parametrize("robust", [True, False])
def test_module_accuracy_on_test_data(robust, heldout_data):
    assert accuracy(demo.module(robust), *heldout_data) >= 0.97


def test_robust_module_withstands_adversarial_attack(heldout_data):
    images, labels = heldout_data[0][:150].float() / 255, heldout_data[1][:150]
    right = {}
    for robust in (True, False):
        net = demo.module(robust)
        attacked = disturb(net, images, labels, 1.0, steps=10, generator=torch.Generator().manual_seed(0))
        assert (attacked - images).flatten(1).norm(dim=1).max() <= 1.001
        right[robust] = (net(normalize(attacked)).argmax(dim=1) == labels).float().mean().item()
    assert right[True] > 0.75
    assert right[True] > right[False] + 0.15


def test_module_has_alexnet_layer_names():
    net = demo.module()
    names = [name for name, _ in net.named_children()]
    assert [name for name in names if name.startswith(("conv", "fc"))] == [
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "conv5",
        "fc6",
        "fc7",
        "fc8",
    ]
    assert [f"relu{k}" for k in range(1, 8)] == [name for name in names if name.startswith("relu")]
    assert not net.training
    assert not any(getattr(layer, "inplace", False) for layer in net)


@pytest.mark.parametrize("robust", [True, False])
def test_module_has_few_dead_filters_in_conv1(robust, heldout_data):
    net = demo.module(robust)
    norms = net.conv1.weight.detach().flatten(1).norm(dim=1)
    with torch.no_grad():
        active = net.relu1(net.conv1(normalize(heldout_data[0][:100].float() / 255))).amax(dim=(0, 2, 3)) > 0
    dead = (norms < 0.1 * norms.median()) | ~active
    assert dead.float().mean() < 0.1


def test_robust_module_has_smoother_filters():
    def low_share(net):
        """Mean fraction of a filter's energy below half the highest frequency."""
        energy = torch.fft.fft2(net.conv1.weight.detach()).abs().square().sum(dim=1)
        frequency = torch.fft.fftfreq(energy.shape[-1])
        low = torch.hypot(frequency[:, None], frequency[None, :]) < 0.25
        return (energy[:, low].sum(dim=1) / energy.sum(dim=(1, 2))).mean().item()

    assert low_share(demo.module(True)) > low_share(demo.module(False)) + 0.03


@pytest.mark.parametrize("robust", [True, False])
def test_checkpoints_are_ordered_and_improve(robust, heldout_data):
    steps = demo.checkpoints(robust)
    assert steps[0] == 0
    assert list(steps) == sorted(set(steps))
    assert len(steps) >= 5
    images, labels = heldout_data[0][:500], heldout_data[1][:500]
    scores = [accuracy(demo.module(robust, checkpoint=step), images, labels) for step in steps]
    assert scores[0] < 0.2
    assert all(late > early for early, late in pairwise(scores))
    assert torch.equal(demo.module(robust, steps[-1]).fc8.weight, demo.module(robust).fc8.weight)


def test_module_error_lists_known_checkpoints():
    with pytest.raises(ValueError, match=r"\b7\b.*\b0, "):
        demo.module(checkpoint=7)


def test_weight_files_are_small_and_hold_only_tensors():
    files = [file for file in (resources.files(demo) / "weights").iterdir() if file.name.endswith(".pt")]
    assert sum(len(file.read_bytes()) for file in files) <= 5e6
    for file in files:
        with file.open("rb") as stream:
            tensors = torch.load(stream, weights_only=True)
        assert type(tensors) is dict
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())


# Training


@pytest.mark.parametrize("coarse", [False, True])
def test_unpack_restores_packed_weights(coarse):
    net = DemoNet(seed=1)
    for name, value in unpack(pack(net, coarse=coarse)).items():
        exact = net.state_dict()[name]
        assert value.dtype == torch.float32
        assert value.shape == exact.shape
        assert (value - exact).abs().max() <= exact.abs().max() * (0.51 / 127 if coarse else 2**-11)


def test_save_writes_a_single_file(tmp_path):
    save(DemoNet(), tmp_path / "new" / "net.pt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pt"]


@pytest.mark.parametrize("radius", [0.0, 1.0])
def test_fit_is_deterministic_for_a_seed(radius, train_data):
    images, labels = train_data[0][:96], train_data[1][:96]
    before = torch.get_rng_state()
    first, second, other = (
        [progress.loss for progress in fit(images, labels, Recipe(radius=radius, epochs=2, batch=32, seed=seed))]
        for seed in (4, 4, 5)
    )
    assert len(first) == 6
    assert first == second
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


def test_render_with_workers_matches_single_process(train_data):
    images, labels = render(Toyscape(12, seed=TEST_SEED, split="train"))
    assert torch.equal(images, train_data[0][:12])
    assert torch.equal(labels, train_data[1][:12])


def test_slice_of_module_is_a_module() -> None:
    whole = demo.module()
    first = whole[:3]
    assert [name for name, _ in first.named_children()] == ["conv1", "relu1", "pool1"]
    assert first[0] is whole.conv1
    assert first(torch.zeros(1, 3, 64, 64)).shape == (1, 32, 16, 16)
