"""What Toyscape and the demo networks promise to the lessons built on them."""

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
from convis_widgets.demo import LABELS, PARTS, Toyscape
from convis_widgets.demo.net import DemoNet, pack, unpack
from convis_widgets.demo.train import Recipe, accuracy, disturb, fit, normalize, render, save

UNSEEN = 20_240  # a seed that no training used


@pytest.fixture(scope="module")
def scenes():
    return Toyscape(1000, seed=UNSEEN)[:]


@pytest.fixture(scope="module")
def unseen(scenes):
    return _tensor([scene.image for scene in scenes]), torch.tensor([scene.label for scene in scenes])


@pytest.fixture(scope="module")
def backgrounds():
    toyscape = Toyscape(1000, seed=UNSEEN)
    return _tensor([toyscape.background(i) for i in range(len(toyscape))])


@pytest.fixture(scope="module")
def learned():
    return render(Toyscape(1000, seed=UNSEEN, split="train"), workers=2)


def _tensor(pictures):
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)


# The pictures


def test_a_scene_is_the_same_picture_whatever_else_was_drawn():
    few, many = Toyscape(8, seed=3), Toyscape(5000, seed=3)
    many[4000], many.background(5)
    for i in (7, 2, 5):
        assert np.array_equal(few[i].image, many[i].image)
        assert np.array_equal(few[i].mask, many[i].mask)
    assert np.array_equal(few[-1].image, many[7].image)


def test_seed_split_and_position_each_give_another_picture():
    pictures = [
        Toyscape(20, seed=3)[2],
        Toyscape(20, seed=4)[2],
        Toyscape(20, seed=3, split="train")[2],
        Toyscape(20, seed=3)[12],
    ]
    assert len({picture.image.tobytes() for picture in pictures}) == 4


def test_a_scene_has_the_promised_shapes_and_is_frozen(scenes):
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


def test_labels_are_balanced(scenes):
    assert len(LABELS) == 10
    assert Counter(scene.name for scene in scenes) == dict.fromkeys(LABELS, 100)
    assert [Toyscape(30).label(i) for i in range(30)] == [scene.label for scene in Toyscape(30)]


def test_a_toyscape_is_a_sequence():
    toyscape = Toyscape(6, seed=2)
    assert len(toyscape) == 6
    assert [scene.label for scene in toyscape[1:4]] == [1, 2, 3]
    assert repr(toyscape) == "Toyscape(6, seed=2, split='test', size=64)"
    with pytest.raises(IndexError, match="scene 6 of 6"):
        toyscape[6]
    with pytest.raises(ValueError, match="no split 'validation'"):
        Toyscape(6, split="validation")


def test_parts_divide_the_mask(scenes):
    for scene in scenes:
        assert tuple(scene.parts) == PARTS[scene.name]
        assert np.array_equal(sum(part.astype(int) for part in scene.parts.values()), scene.mask)


def test_hardly_a_part_is_ever_lost(scenes):
    seen = [part.any() for scene in scenes for part in scene.parts.values()]
    assert np.mean(seen) > 0.98


def test_the_mask_is_where_the_picture_differs_from_its_background(scenes):
    """A shadow only darkens, all three colors by the same factor; what differs otherwise is the figure."""
    toyscape, overlaps = Toyscape(1000, seed=UNSEEN), []
    for i in range(0, 1000, 7):
        scene, behind = scenes[i], toyscape.background(i)
        # the least-squares gray factor from the background to the picture
        factor = (scene.image * behind).sum(-1) / np.maximum((behind**2).sum(-1), 1e-6)
        left = np.abs(scene.image - behind * np.minimum(factor, 1)[..., None]).max(-1)
        figure = left > 0.04
        wide = (
            np.asarray(Image.fromarray(scene.mask).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
        )  # thin tips reach beyond the mask
        clipped = (behind > 0.99).any(-1)
        assert not (figure & ~wide & ~clipped).any()
        overlaps.append((figure & scene.mask & ~clipped).sum() / max(1, (scene.mask & ~clipped).sum()))
    assert np.mean(overlaps) > 0.9


def test_another_size_shows_the_same_scene_with_the_same_mask():
    for i in range(10):
        small, large = Toyscape(10, seed=5)[i], Toyscape(10, seed=5, size=128)[i]
        halved = large.mask.reshape(64, 2, 64, 2).mean(axis=(1, 3)) >= 0.5
        assert (halved & small.mask).sum() / (halved | small.mask).sum() > 0.85
        assert np.abs(large.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)) - small.image).mean() < 0.08


def test_figures_are_off_center_and_of_moderate_size(scenes):
    assert 0.4 < np.mean([scene.mask[32, 32] for scene in scenes]) < 0.6
    assert 0.14 < np.mean([scene.mask.mean() for scene in scenes]) < 0.22
    assert min(scene.mask.sum() for scene in scenes) > 60


def test_images_gives_each_class_in_turn_or_one_class():
    assert [scene.name for scene in demo.images()] == list(LABELS)
    fish = demo.images(3, label="fish")
    assert [scene.name for scene in fish] == ["fish"] * 3
    assert all(np.array_equal(a.image, b.image) for a, b in zip(fish, demo.images(3, label=4), strict=True))


@pytest.mark.parametrize("label", ["dog", 10, -1])
def test_an_unknown_class_is_answered_with_the_list(label):
    with pytest.raises(ValueError, match=r"no class .*choose one of face, car, .* butterfly"):
        demo.images(label=label)


def test_scikit_learn_is_loaded_only_for_a_photograph():
    code = "import sys; from convis_widgets.demo import Toyscape; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# No short cuts: what a classifier can learn without seeing shapes


def _colors(images):
    """Share of each of 64 colors in each picture."""
    codes = (images.long() // 64 * torch.tensor([16, 4, 1]).view(3, 1, 1)).sum(dim=1).flatten(1)
    return np.stack([np.bincount(row, minlength=64) for row in codes.numpy()]) / codes.shape[1] * 20


def _pixels(images):
    """The pictures at 16 x 16."""
    return torch.nn.functional.avg_pool2d(images.float() / 255 - 0.5, 4).flatten(1).numpy()


@pytest.mark.parametrize("features", [_colors, _pixels])
def test_colors_and_linear_classifiers_fail(features, learned, unseen):
    model = LogisticRegression(C=0.03, max_iter=300).fit(features(learned[0]), learned[1])
    assert model.score(features(unseen[0]), unseen[1]) < 0.4


def test_backgrounds_tell_nothing(backgrounds, unseen):
    labels = unseen[1]
    model = LogisticRegression(C=0.03, max_iter=300).fit(_colors(backgrounds[:500]), labels[:500])
    assert model.score(_colors(backgrounds[500:]), labels[500:]) < 0.16
    for robust in (True, False):
        assert accuracy(demo.module(robust), backgrounds, labels) < 0.15


# The networks


@pytest.mark.parametrize("robust", [True, False])
def test_the_network_knows_unseen_pictures(robust, unseen):
    assert accuracy(demo.module(robust), *unseen) >= 0.97


def test_only_the_robust_network_withstands_an_attack(unseen):
    images, labels = unseen[0][:150].float() / 255, unseen[1][:150]
    right = {}
    for robust in (True, False):
        net = demo.module(robust)
        attacked = disturb(net, images, labels, 1.0, steps=10, generator=torch.Generator().manual_seed(0))
        assert (attacked - images).flatten(1).norm(dim=1).max() <= 1.001
        right[robust] = (net(normalize(attacked)).argmax(dim=1) == labels).float().mean().item()
    assert right[True] > 0.75
    assert right[True] > right[False] + 0.15


def test_layers_have_the_names_of_the_textbook():
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
def test_few_filters_of_the_first_layer_are_dead(robust, unseen):
    net = demo.module(robust)
    norms = net.conv1.weight.detach().flatten(1).norm(dim=1)
    with torch.no_grad():
        active = net.relu1(net.conv1(normalize(unseen[0][:100].float() / 255))).amax(dim=(0, 2, 3)) > 0
    dead = (norms < 0.1 * norms.median()) | ~active
    assert dead.float().mean() < 0.1


def test_filters_of_the_robust_network_are_smoother():
    def low_share(net):
        """Share of a filter's energy below half the highest frequency, averaged over the filters."""
        energy = torch.fft.fft2(net.conv1.weight.detach()).abs().square().sum(dim=1)
        frequency = torch.fft.fftfreq(energy.shape[-1])
        low = torch.hypot(frequency[:, None], frequency[None, :]) < 0.25
        return (energy[:, low].sum(dim=1) / energy.sum(dim=(1, 2))).mean().item()

    assert low_share(demo.module(True)) > low_share(demo.module(False)) + 0.03


@pytest.mark.parametrize("robust", [True, False])
def test_checkpoints_are_ordered_and_get_better(robust, unseen):
    steps = demo.checkpoints(robust)
    assert steps[0] == 0
    assert list(steps) == sorted(set(steps))
    assert len(steps) >= 5
    images, labels = unseen[0][:500], unseen[1][:500]
    scores = [accuracy(demo.module(robust, checkpoint=step), images, labels) for step in steps]
    assert scores[0] < 0.2
    assert all(late > early for early, late in pairwise(scores))
    assert torch.equal(demo.module(robust, steps[-1]).fc8.weight, demo.module(robust).fc8.weight)


def test_an_unknown_checkpoint_is_answered_with_the_list():
    with pytest.raises(ValueError, match="no checkpoint at step 7; choose one of 0, "):
        demo.module(checkpoint=7)


def test_weights_are_plain_and_small():
    files = [file for file in (resources.files(demo) / "weights").iterdir() if file.name.endswith(".pt")]
    assert sum(len(file.read_bytes()) for file in files) <= 5e6
    for file in files:
        with file.open("rb") as stream:
            tensors = torch.load(stream, weights_only=True)
        assert type(tensors) is dict
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())


# Training


@pytest.mark.parametrize("coarse", [False, True])
def test_packed_weights_come_back(coarse):
    net = DemoNet(seed=1)
    for name, value in unpack(pack(net, coarse=coarse)).items():
        exact = net.state_dict()[name]
        assert value.dtype == torch.float32
        assert value.shape == exact.shape
        assert (value - exact).abs().max() <= exact.abs().max() * (0.51 / 127 if coarse else 2**-11)


def test_saving_leaves_one_whole_file(tmp_path):
    save(DemoNet(), tmp_path / "new" / "net.pt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pt"]


@pytest.mark.parametrize("radius", [0.0, 1.0])
def test_a_training_is_repeated_by_its_seed_alone(radius, learned):
    images, labels = learned[0][:96], learned[1][:96]
    before = torch.get_rng_state()
    first, second, other = (
        [progress.loss for progress in fit(images, labels, Recipe(radius=radius, epochs=2, batch=32, seed=seed))]
        for seed in (4, 4, 5)
    )
    assert len(first) == 6
    assert first == second
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_draw_what_one_draws(learned):
    images, labels = render(Toyscape(12, seed=UNSEEN, split="train"))
    assert torch.equal(images, learned[0][:12])
    assert torch.equal(labels, learned[1][:12])


def test_a_slice_of_the_network_is_a_network() -> None:
    whole = demo.module()
    first = whole[:3]
    assert [name for name, _ in first.named_children()] == ["conv1", "relu1", "pool1"]
    assert first[0] is whole.conv1
    assert first(torch.zeros(1, 3, 64, 64)).shape == (1, 32, 16, 16)
