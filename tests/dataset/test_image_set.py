from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from convis_widgets import demo
from convis_widgets.core.dataset import image_archive
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.network.transform import Transform

SMALL = Transform((8, 8))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, seed: int = 0) -> Path:
    """Save an image file, creating its folder, with a modification time that depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(6, 5, 3, seed=seed)).save(path)
    os.utime(path, ns=(10**18, 10**18 + seed))
    return path


def folder(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write(root / name, seed)
    return root


def is_one_sentence(error: BaseException) -> bool:
    message = str(error)
    return 20 < len(message) < 300 and "\n" not in message and ". " not in message


# -- folders and lists of files -----------------------------------------------------------------------------------------


def test_image_set_flat_folder_is_sorted_by_name_without_labels(tmp_path: Path) -> None:
    images = ImageSet(folder(tmp_path / "birds", "03.png", "01.jpg", "02.PNG", "x.webp"))
    assert images.names == ["01.jpg", "02.PNG", "03.png", "x.webp"]
    assert list(images) == [tmp_path / "birds" / name for name in images.names]
    assert [images.label(i) for i in range(4)] == [-1] * 4
    assert (images.name, images.classes, images.label_name(-1)) == ("birds", (), "")


def test_image_set_top_level_subfolders_are_classes(tmp_path: Path) -> None:
    images = ImageSet(folder(tmp_path, "b/2.png", "b/deep/1.png", "a/3.png"))
    assert images.names == ["a/3.png", "b/2.png", "b/deep/1.png"]
    assert images.classes == ("a", "b")
    assert [images.label_name(images.label(i)) for i in range(3)] == ["a", "b", "b"]
    assert images.read(2) == (tmp_path / "b" / "deep" / "1.png", 1)


def test_image_set_files_outside_subfolders_have_no_label(tmp_path: Path) -> None:
    images = ImageSet(folder(tmp_path, "a/1.png", "c.png", "b/1.png"))
    assert images.names == ["a/1.png", "b/1.png", "c.png"]
    assert [images.label(i) for i in range(3)] == [0, 1, -1]


def test_image_set_subfolder_without_images_is_not_a_class(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert ImageSet(folder(tmp_path, "full/1.png")).classes == ("full",)


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.csv",
        "a.npz",
        "a.pdf",
        "a.mp4",
        "a.mpg",
        "a.mpeg",
        "weights.h5",
        "jpg",
        ".hidden.png",
        ".git/1.png",
        "a/.b/1.png",
    ],
)
def test_image_set_ignores_hidden_and_non_image_files(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path, "1.png") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "1.png").read_bytes())
    assert ImageSet(tmp_path).names == ["1.png"]


def test_image_set_supports_unicode_names(tmp_path: Path) -> None:
    names = ["Käfer/größe 1.png", "猫/二.png", "кот/😺.png"]
    images = ImageSet(folder(tmp_path / "снимки", *names))
    assert set(images.names) == set(names)
    assert set(images.classes) == {"Käfer", "猫", "кот"}
    assert all(images.load(i, SMALL)[0].shape == (8, 8, 3) for i in range(3))
    assert images.fingerprint()


def test_image_set_follows_symlinks_without_cycles(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "a/1.png")
    folder(tmp_path / "elsewhere", "2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "back").symlink_to(root)
    assert ImageSet(root).names == ["a/1.png", "b/2.png"]


def test_image_set_accepts_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "birds", "1.png"))
    images = ImageSet(".")
    assert (images.name, images.names) == ("birds", ["1.png"])


def test_image_set_list_of_files_keeps_its_order(tmp_path: Path) -> None:
    folder(tmp_path, "2.png", "1.png")
    for path_type in (str, Path):
        images = ImageSet([path_type(tmp_path / "2.png"), path_type(tmp_path / "1.png")], labels=["x", "y"])
        assert images.names == [str(tmp_path / "2.png"), str(tmp_path / "1.png")]
        assert np.array_equal(images.load(0, SMALL)[0], SMALL.image(tmp_path / "2.png"))
        assert images.load(1, SMALL)[1] == 1


def test_image_set_reads_files_lazily(tmp_path: Path) -> None:
    folder(tmp_path, "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    for images in (ImageSet(tmp_path), ImageSet([tmp_path / "bad.png", tmp_path / "good.png", tmp_path / "missing.png"])):
        assert images.fingerprint()
        assert images[0] == tmp_path / "bad.png"
        assert images.load(1, SMALL)[0].shape == (8, 8, 3)
        with pytest.raises(ValueError, match=r"bad\.png"):
            images.load(0, SMALL)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        images.load(2, SMALL)


# -- arrays and lists of images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (3, 8, 8, 1), (3, 8, 8)])
def test_image_set_array_of_network_size_is_unchanged(shape: tuple[int, ...]) -> None:
    whole = pixels(*shape)
    for array in (whole, (whole / 255).astype(np.float32), (whole / 255).astype(np.float64)):
        images = ImageSet(array)
        assert (len(images), images.label(1)) == (3, -1)
        for i in range(3):
            loaded, label = images.load(i, SMALL)
            expected = np.atleast_3d(whole[i]).astype(np.float32) / 255
            assert (loaded.dtype, label) == (np.float32, -1)
            assert np.allclose(loaded, np.broadcast_to(expected, (8, 8, 3)), atol=1e-7)
        assert images.pixels is array


def test_image_set_list_may_mix_files_pil_images_and_arrays(tmp_path: Path) -> None:
    array = pixels(8, 8, 3)
    write(tmp_path / "1.png", seed=5)
    items = [tmp_path / "1.png", Image.fromarray(array), array, torch.from_numpy(array.transpose(2, 0, 1).copy())]
    plain, paired = ImageSet(items), ImageSet([(item, i) for i, item in enumerate(items)])
    assert [plain.label(i) for i in range(4)] == [-1] * 4
    assert [paired.label(i) for i in range(4)] == [0, 1, 2, 3]
    for i in range(4):
        expected = SMALL.image(tmp_path / "1.png") if i == 0 else array.astype(np.float32) / 255
        assert np.array_equal(plain.load(i, SMALL)[0], expected)
        assert np.array_equal(paired.load(i, SMALL)[0], expected)
        assert paired[i] is items[i]
    assert plain.pixels is None


def test_image_set_pair_label_may_be_name_or_none() -> None:
    array = pixels(8, 8, 3)
    images = ImageSet([(array, "cat"), (array, "ant"), (array, None)])
    assert [images.label_name(images.load(i, SMALL)[1]) for i in range(3)] == ["cat", "ant", ""]
    assert images.classes == ("ant", "cat")


def test_image_set_is_a_sequence() -> None:
    array = pixels(5, 8, 8, 3)
    images = ImageSet(array)
    assert np.array_equal(images[-1], array[4])
    assert [part.tobytes() for part in images[1:4:2]] == [array[1].tobytes(), array[3].tobytes()]
    assert [part.tobytes() for part in images] == [part.tobytes() for part in array]
    assert [part.tobytes() for part in reversed(images)] == [part.tobytes() for part in array[::-1]]
    with pytest.raises(IndexError):
        images[5]


def test_image_set_ensure_returns_image_set_or_creates_one() -> None:
    images = ImageSet(pixels(2, 8, 8, 3), labels=["b", "a"])
    assert ImageSet.ensure(images) is images
    assert len(ImageSet.ensure(pixels(2, 8, 8, 3))) == 2
    again = ImageSet(images)
    assert (again.label(0), again.classes, again.fingerprint()) == (1, ("a", "b"), images.fingerprint())
    assert ImageSet(images, labels=[7, 8]).label(0) == 7


# -- .npz ---------------------------------------------------------------------------------------------------------------


def test_image_set_npz_with_one_array_loads_labels_and_classes(tmp_path: Path) -> None:
    x, y = pixels(3, 8, 8), np.array([2, 0, 1], np.uint8)
    np.savez(tmp_path / "digits.npz", x=x, y=y, classes=["zero", "one", "two"])
    images = ImageSet(tmp_path / "digits.npz")
    assert np.array_equal(images.pixels, x)
    assert (images.name, images.classes) == ("digits", ("zero", "one", "two"))
    assert [images.label(i) for i in range(3)] == [2, 0, 1]


def test_image_set_npz_with_several_arrays_lists_them_and_their_labels(tmp_path: Path) -> None:
    file = tmp_path / "two.npz"
    train, test = pixels(4, 8, 8, 3), pixels(4, 8, 8, 3, seed=1)
    np.savez(file, x_train=train, y_train=[0, 1, 2, 3], x_test=test, y_test=[3, 2, 1, 0])
    with pytest.raises(ValueError, match=r"two\.npz.*x_train.*x_test"):
        ImageSet(file)
    images = ImageSet(str(file), array="x_test")
    assert np.array_equal(images.pixels, test)
    assert [images.label(i) for i in range(4)] == [3, 2, 1, 0]
    assert [ImageSet(file, array="x_train").label(i) for i in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"'x'.*x_train.*x_test"):
        ImageSet(file, array="x")


def test_image_set_npz_without_labels_is_unlabeled(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=pixels(3, 8, 8, 3), mean=np.zeros(3), seed=7)
    assert ImageSet(tmp_path / "plain.npz").label(0) == -1


def test_image_set_opens_cifar_subset_with_labels(real: Path) -> None:
    images = ImageSet(real / "cifar10_subset.npz", array="x_test")
    assert (len(images), len(images.classes), images.pixels.shape[1:]) == (1000, 10, (32, 32, 3))
    assert np.bincount([images.label(i) for i in range(1000)]).tolist() == [100] * 10


# -- datasets -----------------------------------------------------------------------------------------------------------


class CountingDataset(Dataset):
    """Pairs of an image and its label; counts accesses."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.num_accesses = array, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        self.num_accesses += 1
        return self.array[i], i % 3


class MadeItems(Dataset):
    """Three items, made by a function of the index."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def test_image_set_accesses_custom_dataset_lazily() -> None:
    data = CountingDataset(pixels(5, 8, 8, 3))
    images = ImageSet(data, classes=["a", "b", "c"])
    assert data.num_accesses == 0
    loaded, label = images.load(4, SMALL)
    assert np.array_equal(loaded, data.array[4].astype(np.float32) / 255)
    assert (label, images.label_name(label), data.num_accesses) == (1, "b", 1)


def test_image_set_tensors_are_channels_first() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for images, label in (
        (ImageSet(TensorDataset(x, torch.arange(4))), 2),
        (ImageSet(TensorDataset(x)), -1),
        (ImageSet(x), -1),
    ):
        loaded, loaded_label = images.load(2, SMALL)
        assert np.array_equal(loaded, x[2].permute(1, 2, 0).numpy())
        assert loaded_label == images.label(2) == label


def test_image_set_accepts_torchvision_fake_data() -> None:
    data = torchvision.datasets.FakeData(3, (3, 20, 24), num_classes=2)
    images = ImageSet(data)
    assert np.array_equal(images.load(1, SMALL)[0], SMALL.image(data[1][0]))
    assert images.label(1) == data[1][1]


def test_image_set_image_folder_has_labels_and_classes_without_reading(tmp_path: Path) -> None:
    data = torchvision.datasets.ImageFolder(folder(tmp_path, "dog/1.png", "ant/1.png", "ant/2.png"))
    for name in ("ant/1.png", "ant/2.png"):
        (tmp_path / name).write_bytes(b"not an image")
    images = ImageSet(data)
    assert images.classes == ("ant", "dog")
    assert [images.label(i) for i in range(3)] == [0, 0, 1]
    assert images.fingerprint() == ImageSet(data).fingerprint()
    assert images.load(2, SMALL)[0].shape == (8, 8, 3)
    assert np.array_equal(ImageSet(tmp_path).load(2, SMALL)[0], images.load(2, SMALL)[0])


def test_image_set_toyscape_labels_are_known_without_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = demo.Toyscape(12, seed=3)
    scene = scenes[11]
    with monkeypatch.context() as patch:
        patch.setattr(demo.Toyscape, "__getitem__", lambda *_: pytest.fail("a scene was scene"))
        images = ImageSet(scenes)
        assert [images.label(i) for i in range(12)] == [scenes.label(i) for i in range(12)]
        assert images.classes == demo.LABELS
    loaded, label = images.load(11, Transform((64, 64)))
    assert np.array_equal(loaded, scene.image)
    assert images.label_name(label) == scene.name


# -- labels -------------------------------------------------------------------------------------------------------------


def test_image_set_labels_argument_overrides_labels_of_source(tmp_path: Path) -> None:
    root = folder(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    for numbers in ([4, 0, 9], np.array([4, 0, 9]), torch.tensor([4, 0, 9]), iter([4, 0, 9])):
        images = ImageSet(root, labels=numbers)
        assert [images.label(i) for i in range(3)] == [4, 0, 9]
    array = pixels(3, 8, 8, 3)
    for names in (["fox", "ape", "fox"], np.array(["fox", "ape", "fox"])):
        images = ImageSet(array, labels=names)
        assert (images.classes, [images.label(i) for i in range(3)]) == (("ape", "fox"), [1, 0, 1])
    images = ImageSet(array, labels=["fox", None, "ape"], classes=["fox", "ape"])
    assert [images.load(i, SMALL)[1] for i in range(3)] == [0, -1, 1]


@pytest.mark.parametrize("kind", ["folder", "archive", "dataset"])
def test_image_set_name_is_one_line_without_control_characters(kind: str, tmp_path: Path) -> None:
    name, array = "cats\x1b[31m\nand dogs", pixels(3, 8, 8, 3)
    if kind == "folder":
        folder(tmp_path / name, "1.png")
        images = ImageSet(tmp_path / name)
    elif kind == "archive":
        np.savez(tmp_path / f"{name}.npz", images=array)
        images = ImageSet(tmp_path / f"{name}.npz")
    else:
        images = ImageSet(type(name, (MadeItems,), {})(lambda i: array[i]))
    assert images.name == "cats\ufffd[31m and dogs"


def test_image_set_classes_by_index_or_by_name() -> None:
    array = pixels(3, 8, 8, 3)
    for classes in ({0: "fox", 1: "ape"}, {"1": "ape", "0": "fox"}, {"ape": 1, "fox": 0}, iter(["fox", "ape"])):
        images = ImageSet(array, labels=["ape", "fox", None], classes=classes)
        assert (images.classes, [images.label(i) for i in range(3)]) == (("fox", "ape"), [1, 0, -1])
    with pytest.raises(ValueError, match="classes= should have the classes 0 to 1, but lack 0 and have also 5"):
        ImageSet(array, classes={1: "fox", 5: "ape"})
    with pytest.raises(TypeError, match="classes= takes a list, in the order of the labels"):
        ImageSet(array, classes={"fox", "ape"})  # type: ignore[arg-type]


def test_image_set_rejects_names_of_several_classes() -> None:
    array, classes = pixels(3, 8, 8, 3), ["crane", "fox", "ape", "crane"]
    message = "'crane' is the name of classes 0 and 3; give their numbers as labels"
    for source, labels in ((array, ["fox", "crane", "ape"]), ([(image, "crane") for image in array], None)):
        with pytest.raises(ValueError, match=message):
            ImageSet(source, labels=labels, classes=classes)
    assert ImageSet(array, labels=[0, 3, 1], classes=classes).label(1) == 3
    assert ImageSet(array, labels=["fox", "ape", "fox"], classes=classes).label(1) == 2
    read_later = ImageSet(MadeItems(lambda i: (array[i], ["crane", "fox", "ape"][i])), classes=classes)
    assert [read_later.read(i)[1] for i in range(3)] == [-1, 1, 2]
    assert "crane" in read_later.note


def test_image_set_label_name_of_unnamed_label_is_its_number() -> None:
    images = ImageSet(pixels(2, 8, 8, 3), labels=[1, 7], classes=["cat", "dog"])
    assert [images.label_name(images.label(i)) for i in range(2)] == ["dog", "7"]


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], []])
def test_image_set_rejects_wrong_number_of_labels(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"\b{len(labels)}\b.*\b3\b"):
        ImageSet(pixels(3, 8, 8, 3), labels=labels)


# -- preprocessing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (5, 5), (12, 30), (7, 3)])
def test_image_set_array_of_other_size_is_transformed_like_pil_image(shape: tuple[int, int]) -> None:
    array = pixels(*shape, 3)
    for transform in (SMALL, Transform((8, 6), resize=10)):
        expected = transform.image(Image.fromarray(array))
        assert np.array_equal(ImageSet(array[None]).load(0, transform)[0], expected)
        loaded = ImageSet(array[None] / 255).load(0, transform)[0]
        assert loaded.shape == (*transform.size, 3)
        assert np.abs(loaded - expected).max() <= 1.01 / 255
    gray = array[..., 0]
    for given in (gray[None], gray[None, ..., None]):
        loaded = ImageSet(given).load(0, Transform((8, 8), 1))[0]
        assert np.array_equal(loaded, Transform((8, 8), 1).image(Image.fromarray(gray)))


@pytest.mark.parametrize("size", [8, 16])
def test_image_set_converts_gray_to_rgb_and_rgb_to_luminance(size: int) -> None:
    gray, color = pixels(1, size, size), np.full((1, size, size, 3), (200, 100, 50), np.uint8)
    for given in (gray, [Image.fromarray(gray[0])]):
        loaded = ImageSet(given).load(0, SMALL)[0]
        assert loaded.shape == (8, 8, 3)
        assert (loaded == loaded[..., :1]).all()
        assert loaded.std() > 0
    for given in (color, [Image.fromarray(color[0])]):
        loaded = ImageSet(given).load(0, Transform((8, 8), 1))[0]
        assert loaded.shape == (8, 8, 1)
        assert np.abs(loaded * 255 - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).max() <= 1


def test_image_set_load_rejects_items_that_are_not_images() -> None:
    images = ImageSet([pixels(8, 8, 3), None, np.full((8, 8, 3), np.nan), "missing.png", pixels(8, 8, 2)])
    assert images.load(0, SMALL)[0].shape == (8, 8, 3)
    for i in range(1, 5):
        with pytest.raises((TypeError, ValueError, OSError)):
            images.load(i, SMALL)


# -- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "nowhere"),
        ("file.txt", FileNotFoundError, r"file\.txt"),
        ("nowhere.npz", FileNotFoundError, r"nowhere\.npz"),
        ("empty", ValueError, "empty"),
        ("texts", ValueError, r"texts.*\.jpg"),
        ("none.npz", ValueError, r"none\.npz"),
        ("damaged.npz", ValueError, r"damaged\.npz"),
        ([], ValueError, "(?i)image"),
        (np.zeros((0, 8, 8, 3)), ValueError, "(?i)image"),
        (np.zeros((8, 8)), ValueError, r"\(8, 8\)"),
        (np.zeros((1, 1, 8, 8, 3)), ValueError, r"\(1, 1, 8, 8, 3\)"),
        (7, TypeError, r"\bint\b"),
        (None, TypeError, "NoneType"),
        ({"a": 1}, TypeError, r"\bdict\b"),
        (iter([1]), TypeError, "list_iterator"),
        (b"bytes", TypeError, r"\bbytes\b"),
    ],
)
def test_image_set_invalid_source_raises_one_sentence(
    source: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("file.txt", "texts/1.txt", "damaged.npz"):
        (tmp_path / name).write_text("not an image")
    np.savez(tmp_path / "none.npz", numbers=np.arange(3))
    with pytest.raises(error, match=message) as caught:
        ImageSet(tmp_path / source if isinstance(source, str) else source)
    assert type(caught.value) is error
    assert is_one_sentence(caught.value)


# -- the fingerprint ----------------------------------------------------------------------------------------------------


def rewrite(root: Path) -> None:
    (root / "a" / "1.png").write_bytes(b"something else")


def rewrite_with_same_time(root: Path) -> None:
    before = (root / "a" / "1.png").stat().st_mtime_ns
    rewrite(root)
    os.utime(root / "a" / "1.png", ns=(before, before))


def touch(root: Path) -> None:
    os.utime(root / "a" / "1.png", ns=(10**18, 10**18 + 777))


def rename(root: Path) -> None:
    (root / "a" / "1.png").rename(root / "a" / "3.png")


def move_to_other_class(root: Path) -> None:
    (root / "a" / "1.png").rename(root / "b" / "1.png")


def add(root: Path) -> None:
    write(root / "a" / "9.png")


def remove(root: Path) -> None:
    (root / "a" / "1.png").unlink()


def rename_a_class(root: Path) -> None:
    (root / "a").rename(root / "c")


@pytest.mark.parametrize(
    "change", [rewrite, rewrite_with_same_time, touch, rename, move_to_other_class, add, remove, rename_a_class]
)
def test_image_set_fingerprint_changes_with_folder(change: Callable[[Path], None], tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "a/1.png", "a/2.png", "b/2.png")
    before = ImageSet(root).fingerprint()
    assert ImageSet(root).fingerprint() == before
    change(root)
    assert ImageSet(root).fingerprint() != before


def test_image_set_fingerprint_survives_moving_and_copying_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "a/1.png", "b/2.png")
    before = ImageSet(root).fingerprint()
    copied = shutil.copytree(root, tmp_path / "other" / "copy")
    moved = root.rename(tmp_path / "moved")
    assert ImageSet(copied).fingerprint() == ImageSet(str(moved)).fingerprint() == before


def test_image_set_fingerprint_of_list_changes_when_file_is_deleted(tmp_path: Path) -> None:
    paths = [write(tmp_path / "1.png"), write(tmp_path / "2.png")]
    before = ImageSet(paths).fingerprint()
    assert ImageSet(paths[::-1]).fingerprint() != before
    paths[1].unlink()
    assert ImageSet(paths).fingerprint() != before


def forms(array: np.ndarray) -> list[Any]:
    """The same images in every in-memory form."""
    return [
        array,
        array / 255,
        list(array),
        [Image.fromarray(part) for part in array],
        [(part, 1) for part in array],
        torch.from_numpy(array),
    ]


@pytest.mark.parametrize("form", range(6))
def test_image_set_fingerprint_of_in_memory_images_depends_on_every_pixel(form: int) -> None:
    array = pixels(99, 3, 3, 3)
    before = ImageSet(forms(array)[form]).fingerprint()
    assert ImageSet(forms(array.copy())[form]).fingerprint() == before
    for place in ((0, 0, 0, 0), (1, 1, 1, 1), (50, 1, 0, 2), (98, 2, 2, 2)):
        changed = array.copy()
        changed[place] ^= 1
        assert ImageSet(forms(changed)[form]).fingerprint() != before
    swapped = array.copy()
    swapped[[3, 4]] = array[[4, 3]]
    assert ImageSet(forms(swapped)[form]).fingerprint() != before
    assert ImageSet(forms(array[:98])[form]).fingerprint() != before


def test_image_set_fingerprint_depends_on_shape_not_memory_order() -> None:
    array = pixels(4, 6, 6)
    before = ImageSet(array).fingerprint()
    assert ImageSet(np.asfortranarray(array)).fingerprint() == before
    assert ImageSet(array.reshape(4, 4, 9)).fingerprint() != before


def test_image_set_fingerprint_depends_on_labels_and_classes() -> None:
    array = pixels(3, 4, 4, 3)
    sets = [
        ImageSet(array),
        ImageSet(array, labels=[0, 1, 0]),
        ImageSet(array, labels=[0, 1, 1]),
        ImageSet(array, labels=[0, 1, 1], classes=["a", "b"]),
        ImageSet(array, labels=[0, 1, 1], classes=["a", "c"]),
        ImageSet([(part, i) for i, part in enumerate(array)]),
        ImageSet([(part, 2 - i) for i, part in enumerate(array)]),
    ]
    assert len({images.fingerprint() for images in sets}) == len(sets)
    assert ImageSet(array, labels=["a", "b", "b"]).fingerprint() == sets[3].fingerprint()


def test_image_set_fingerprint_of_large_dataset_samples_few_images() -> None:
    data = CountingDataset(pixels(1000, 2, 2, 3))
    before = ImageSet(data).fingerprint()
    assert 10 < data.num_accesses < 40
    assert ImageSet(CountingDataset(data.array.copy())).fingerprint() == before
    assert ImageSet(CountingDataset(255 - data.array)).fingerprint() != before
    assert ImageSet(CountingDataset(data.array[:999])).fingerprint() != before


def test_image_set_fingerprint_of_small_dataset_uses_all_images() -> None:
    array = pixels(20, 2, 2, 3)
    before = ImageSet(CountingDataset(array)).fingerprint()
    for i in range(20):
        changed = array.copy()
        changed[i, 0, 0, 0] ^= 1
        assert ImageSet(CountingDataset(changed)).fingerprint() != before


def test_image_set_fingerprint_depends_on_toyscape_arguments() -> None:
    arguments = [{}, {"seed": 1}, {"split": "train"}, {"size": 24}, {"n": 3}]
    sets = [ImageSet(demo.Toyscape(**{"n": 2, "size": 16, **kwargs})) for kwargs in arguments]
    assert len({images.fingerprint() for images in sets}) == len(arguments)
    assert ImageSet(demo.Toyscape(2, size=16)).fingerprint() == sets[0].fingerprint()


def test_image_set_fingerprint_of_image_folder_uses_all_files(tmp_path: Path) -> None:
    folder(tmp_path, *[f"a/{i:02}.png" for i in range(40)])
    before = ImageSet(torchvision.datasets.ImageFolder(tmp_path)).fingerprint()
    os.utime(tmp_path / "a" / "33.png", ns=(1, 1))
    assert ImageSet(torchvision.datasets.ImageFolder(tmp_path)).fingerprint() != before


def test_image_set_fingerprint_ignores_split_and_seed_methods() -> None:
    class Splits(CountingDataset):
        def split(self) -> None: ...

        def seed(self) -> None: ...

    array = pixels(4, 2, 2, 3)
    assert ImageSet(Splits(array)).fingerprint() == ImageSet(Splits(array)).fingerprint()
    assert ImageSet(Splits(array)).fingerprint() != ImageSet(Splits(255 - array)).fingerprint()


def test_image_set_fingerprint_with_unreadable_items() -> None:
    class Faulty(CountingDataset):
        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            if i == 0:
                raise RuntimeError("no such record")
            return super().__getitem__(i)

    array = pixels(4, 2, 2, 3)
    assert ImageSet(Faulty(array)).fingerprint() != ImageSet(Faulty(255 - array)).fingerprint()
    assert ImageSet([array[0], None]).fingerprint() != ImageSet([array[1], None]).fingerprint()


# -- invalid labels and sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0.5, 1], r"0\.5"), ([0, float("nan"), 1], r"\bnan\b"), (np.eye(3), r"\(3,\)"), ([0, {}, 1], r"\bdict\b")],
)
def test_image_set_rejects_label_that_is_not_an_integer(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(pixels(3, 8, 8, 3), labels=labels)


@pytest.mark.parametrize("labels", [np.array([[0], [1], [2]]), torch.tensor([0.0, 1.0, 2.0]), [np.int8(0), True, 2]])
def test_image_set_accepts_integer_labels_of_any_type(labels: Any) -> None:
    images = ImageSet(pixels(3, 8, 8, 3), labels=labels)
    assert [images.label(i) for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("label", "described"),
    [
        (torch.tensor([1, 0, 1]), "(3,)"),
        ({"boxes": torch.zeros(2, 4)}, "dict"),
        (np.zeros((8, 8)), "(8, 8)"),
        (Image.new("L", (8, 8)), "(8, 8)"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        ([], "(0,)"),
        (object(), "object"),
        ("cat", "cat"),
    ],
)
def test_image_set_other_labels_are_left_out_and_noted_once(label: Any, described: str) -> None:
    array = pixels(3, 8, 8, 3)
    images = ImageSet(MadeItems(lambda i: (array[i], label)))
    assert images.note == ""
    for i in range(3):
        loaded, index = images.load(i, SMALL)
        assert np.array_equal(loaded, array[i].astype(np.float32) / 255)
        assert index == images.label(i) == -1
    assert described in images.note
    assert images.note in repr(images)
    assert is_one_sentence(ValueError(images.note))
    given = ImageSet(MadeItems(lambda i: (array[i], label)), labels=[2, 1, 0])
    assert [given.load(i, SMALL)[1] for i in range(3)] == [2, 1, 0]
    assert given.note == ""


def test_image_set_one_hot_label_is_its_class() -> None:
    for vector in (torch.eye(3), np.eye(3, dtype=bool), np.eye(3).tolist()):
        images = ImageSet(MadeItems(lambda i, vector=vector: (pixels(8, 8, 3), vector[i])), classes=["a", "b", "c"])
        assert [images.load(i, SMALL)[1] for i in range(3)] == [0, 1, 2]
        assert images.note == ""
    assert ImageSet(MadeItems(lambda _: (pixels(8, 8, 3), np.array([0.0, 0.9])))).load(0, SMALL)[1] == -1


@pytest.mark.parametrize(
    "item",
    [
        lambda image, label: (image, label, "more"),
        lambda image, label: {"image": image, "label": label},
        lambda image, label: {"label": label, "img": image, "id": 7},
        lambda image, label: {"pixel_values": image, "labels": torch.tensor(label)},
    ],
)
def test_image_set_items_may_be_longer_tuples_and_dicts(item: Callable) -> None:
    array = pixels(3, 8, 8, 3)
    images = ImageSet(MadeItems(lambda i: item(array[i], i)))
    for i in range(3):
        loaded, label = images.load(i, SMALL)
        assert np.array_equal(loaded, array[i].astype(np.float32) / 255)
        assert label == i


def test_image_set_dict_may_hold_bytes_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "1.png")
    for image in ({"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}):
        loaded, label = ImageSet([{"image": image, "label": 4}]).load(0, SMALL)
        assert np.array_equal(loaded, SMALL.image(file))
        assert label == 4


def test_image_set_class_names_of_hugging_face_features() -> None:
    class Feature:
        names = ["ant", "bee", "cow"]  # noqa: RUF012

    data = MadeItems(lambda i: {"image": pixels(8, 8, 3), "label": i})
    data.features = {"image": None, "label": Feature()}
    data.shape = (3, 2)  # rows and columns
    images = ImageSet(data)
    assert [images.label_name(images.label(i)) for i in range(3)] == ["ant", "bee", "cow"]


def test_image_set_labels_after_target_transform(tmp_path: Path) -> None:
    folder(tmp_path, "ant/1.png", "dog/1.png")
    images = ImageSet(torchvision.datasets.ImageFolder(tmp_path, target_transform=lambda label: 5 - label))
    assert [images.label(i) for i in range(2)] == [5, 4]


def test_image_set_targets_that_are_files_or_of_another_length_are_not_labels(tmp_path: Path) -> None:
    data = MadeItems(lambda _: (pixels(8, 8, 3), 2))
    data.targets = [str(write(tmp_path / f"{i}.png")) for i in range(3)]
    images = ImageSet(data)
    assert (images.classes, [images.label(i) for i in range(3)]) == ((), [-1] * 3)
    data.targets = [0, 1]
    assert [ImageSet(data).label(i) for i in range(3)] == [2] * 3


# -- subsets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ImageFolder", "ImageSet", "Toyscape"])
def test_image_set_of_subset_keeps_names_labels_and_classes(kind: str, tmp_path: Path) -> None:
    folder(tmp_path, "ant/1.png", "ant/2.png", "dog/1.png", "dog/2.png")
    whole = {
        "ImageFolder": lambda: torchvision.datasets.ImageFolder(tmp_path),
        "ImageSet": lambda: ImageSet(tmp_path),
        "Toyscape": lambda: demo.Toyscape(4, size=16),
    }[kind]()
    expected = ImageSet(whole)
    order = [3, 0, 2]
    generator = torch.Generator().manual_seed(0)
    split = random_split(whole, [1, 3], generator=generator)[1]
    for subset, indices in (
        (Subset(whole, order), order),
        (Subset(Subset(whole, order), [1, 2]), [0, 2]),
        (Subset(whole, torch.tensor([1])), [1]),
        (split, list(split.indices)),
        (ConcatDataset([Subset(whole, [2]), Subset(whole, [1, 0])]), [2, 1, 0]),
    ):
        images = ImageSet(subset)
        assert images.names == [expected.names[i] for i in indices] or expected.names[0] == "image 0"
        assert (images.classes, len(images)) == (expected.classes, len(indices))
        for i, index in enumerate(indices):
            assert images.label(i) == expected.label(index)
            assert np.array_equal(images.load(i, SMALL)[0], expected.load(index, SMALL)[0])
    assert ImageSet(Subset(whole, [0, 1])).fingerprint() != ImageSet(Subset(whole, [0, 2])).fingerprint()


def test_image_set_of_subset_class_of_the_user_has_its_own_labels(tmp_path: Path) -> None:
    class Flipped(Subset):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            image, label = super().__getitem__(i)
            return image, 1 - label

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[i] for i in indices]

    folder(tmp_path, "ant/1.png", "dog/1.png")
    images = ImageSet(Flipped(torchvision.datasets.ImageFolder(tmp_path), [0, 1]))
    assert [images.label(i) for i in range(2)] == [1, 0]
    assert images.names == ["ant/1.png", "dog/1.png"]


# -- columns of paths ---------------------------------------------------------------------------------------------------


def test_image_set_column_of_paths_is_a_list_of_files(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = [write(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    table = pandas.DataFrame({"file": list(map(str, paths)), "kind": ["b", "a", "b"]}, index=[7, 3, 5])
    for column in (table["file"], table["file"].astype("category"), np.array(paths), np.array(list(map(str, paths)))):
        images = ImageSet(column, labels=table["kind"])
        assert images.from_files
        assert list(images) == paths
        assert [images.label_name(images.label(i)) for i in range(3)] == ["b", "a", "b"]
    with pytest.raises(TypeError, match=r"DataFrame.*column"):
        ImageSet(table)
    for numbers in (np.arange(3), torch.arange(3), pandas.Series([1, 2])):
        with pytest.raises(ValueError, match=r"\(\d,\)"):
            ImageSet(numbers)


# -- archives -----------------------------------------------------------------------------------------------------------


def test_image_set_npz_passes_over_members_that_are_not_arrays(tmp_path: Path) -> None:
    path, array = tmp_path / "set.npz", pixels(3, 8, 8, 3)
    np.savez(path, x=array, y=[2, 0, 1], other=np.array([{}], object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
        archive.writestr("empty", "")
    images = ImageSet(path)
    assert np.array_equal(images.pixels, array)
    assert [images.label(i) for i in range(3)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("extra", "classes", "labels"),
    [
        ({"y": [0.5, 1, 2]}, (), [-1, 1, 2]),
        ({"y": [0, 1, 2], "classes": np.array([b"a", b"b", b"c"])}, ("a", "b", "c"), [0, 1, 2]),
        ({"classes": 7}, ("7",), [-1, -1, -1]),
    ],
)
def test_image_set_npz_with_odd_labels_and_classes(extra: dict, classes: tuple, labels: list, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=pixels(3, 8, 8, 3), **extra)
    images = ImageSet(tmp_path / "set.npz")
    assert (images.classes, [images.label(i) for i in range(3)]) == (classes, labels)


@pytest.mark.parametrize("is_true", [True, False])
def test_image_set_npz_too_large_for_memory_is_rejected_unread(
    is_true: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of an array, or the directory of the archive, says how large it is."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (30 if is_true else 10**7, 1000, 1000)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(30 if is_true else 0):
            file.write(bytes(10**6))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_args, **_kwargs: pytest.fail("it was decompressed"))
    monkeypatch.setattr(image_archive, "MAX_ARCHIVE_BYTES", 20_000_000)
    with pytest.raises(ValueError, match=r"bomb\.npz.*[MG]B") as caught:
        ImageSet(path)
    assert is_one_sentence(caught.value)


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_image_set_names_that_are_not_utf_8_are_shown_with_replacement_characters(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    path = write(tmp_path / name / f"{name}.png")
    for images in (ImageSet(tmp_path), ImageSet([path]), ImageSet(path.parent)):
        assert images.names[0].endswith("caf\ufffd.png")
        repr((images, images.names, images.classes, images.name)).encode()
        assert images.load(0, SMALL)[0].shape == (8, 8, 3)
    assert ImageSet(tmp_path).classes == ("caf\ufffd",)
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="caf\ufffd.png") as caught:
        ImageSet([path]).load(0, SMALL)
    str(caught.value).encode()


@pytest.mark.parametrize("source", ["~nosuchuser/images", "x" * 5000, "x" * 5000 + ".npz", "/dev/null", "a\0b"])
def test_image_set_path_that_cannot_be_a_folder_raises_one_sentence(source: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ImageSet(source)
    assert len(str(caught.value)) < 500
    with pytest.raises((FileNotFoundError, ValueError)):
        ImageSet([source]).load(0, SMALL)


def test_image_set_fingerprint_depends_on_half_precision_tensors_and_palettes() -> None:
    tensor = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert ImageSet([tensor]).fingerprint() != ImageSet([tensor / 2]).fingerprint()
    image = Image.fromarray(pixels(8, 8, 3)).quantize(4)
    other = image.copy()
    other.putpalette(image.getpalette()[::-1])
    assert ImageSet([image]).fingerprint() != ImageSet([other]).fingerprint()


def test_image_set_error_says_how_to_make_a_set(tmp_path: Path) -> None:
    file = write(tmp_path / "1.png")
    for source, error, message in (
        (file, FileNotFoundError, r"1\.png.*\.npz.*list"),
        (tmp_path / "*.png", FileNotFoundError, r"\*\.png.*list"),
        ((path for path in [file]), TypeError, r"generator.*list\("),
        (pixels(40, 30, 3), ValueError, r"\(40, 30, 3\).*list"),
    ):
        with pytest.raises(error, match=message) as caught:
            ImageSet(source)
        assert is_one_sentence(caught.value)
    assert len(ImageSet([file])) == len(ImageSet([pixels(40, 30, 3)])) == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [("labels", {0: "cat", 1: "dog"}), *((name, value) for name in ("labels", "classes") for value in (5, "cat", {"cat"}))],
)
def test_image_set_rejects_labels_or_classes_that_are_not_lists(argument: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{argument}.*list"):
        ImageSet(pixels(2, 8, 8, 3), **{argument: value})


def test_image_set_rejects_too_large_label() -> None:
    with pytest.raises(ValueError, match="1099511627776"):
        ImageSet(pixels(2, 8, 8, 3), labels=[0, 2**40])


@pytest.mark.parametrize("labels", [np.array([[1], [0], [2]]), np.array([1.0, 0.0, 2.0]), np.array(["b", "a", "c"])])
def test_image_set_npz_labels_may_be_of_any_type(labels: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=pixels(3, 8, 8, 3), labels=labels)
    images = ImageSet(tmp_path / "set.npz")
    assert [images.label(i) for i in range(3)] == [1, 0, 2]


def test_image_set_rejects_single_image_tensor() -> None:
    with pytest.raises(ValueError, match=r"\(3, 64, 64\).*list"):
        ImageSet(torch.rand(3, 64, 64))
    assert len(ImageSet(torch.rand(5, 64, 64))) == 5
