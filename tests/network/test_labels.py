from __future__ import annotations

import collections
import itertools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision import models

from convis_widgets.core.network.labels import find_class, match_labels, read_labels, search_labels
from convis_widgets.core.network.network import Network
from convis_widgets.widgets.controls.pickers import ClassPicker

ANIMALS = ("cat", "dog", "owl")


def classifier(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "labels",
    [
        list(ANIMALS),
        {0: "cat", 1: "dog", 2: "owl"},
        {2: "owl", 0: "cat", 1: "dog"},
        {"owl": 2, "cat": 0, "dog": 1},
        json.loads('{"2": "owl", "0": "cat", "1": "dog"}'),
        {np.int64(1): "dog", np.int32(0): "cat", np.uint8(2): "owl"},
        {"dog": torch.tensor(1), "owl": np.int64(2), "cat": 0},
        MappingProxyType(collections.OrderedDict([("1", "dog"), ("0", "cat"), ("2", "owl")])),
        pd.Series(ANIMALS),
        pd.Series({2: "owl", 0: "cat", 1: "dog"}),
        pd.Series({"owl": 2, "cat": 0, "dog": 1}),
        pd.Index(ANIMALS),
        np.array(ANIMALS),
        (label for label in ANIMALS),
        {"cat": None, "dog": None, "owl": None}.keys(),
        [b"cat\n", " dog", np.str_("owl")],
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_labels_of_any_form_are_in_the_order_of_their_indices(labels: Any) -> None:
    assert Network(classifier(3), size=8, labels=labels).labels == ANIMALS


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(4))))
def test_label_dict_both_ways_round(permutation: tuple[int, ...]) -> None:
    names = "abcd"
    by_index = {i: names[i] for i in permutation}
    assert read_labels(by_index, 4) == read_labels({v: k for k, v in by_index.items()}, 4) == tuple(names)


def test_digits_as_labels_are_what_is_text() -> None:
    order = (7, 3, 0, 1, 2, 4, 5, 6, 9, 8)
    expected = tuple(map(str, order))
    assert read_labels({i: str(digit) for i, digit in enumerate(order)}, 10) == expected
    assert read_labels({str(digit): i for i, digit in enumerate(order)}, 10) == expected
    assert read_labels(torch.tensor(order), 10) == read_labels(np.array(order), 10) == read_labels(order, 10) == expected
    for ambiguous in ({str(i): str(digit) for i, digit in enumerate(order)}, dict(enumerate(order))):
        with pytest.raises(ValueError, match="numbers.*list"):
            read_labels(ambiguous, 10)
    assert read_labels({i: i for i in range(10)}, 10) == tuple(string.digits)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ({"cat", "dog", "owl"}, TypeError, "set.*order"),
        (frozenset(ANIMALS), TypeError, "set.*order"),
        ("cat", TypeError, "cat.*list"),
        (Path("labels.txt"), TypeError, "labels.txt.*list"),
        (3, TypeError, "list"),
        (["cat", None, "owl"], TypeError, "label 1 is None"),
        (pd.Series(["cat", "dog", None]), TypeError, "label 2 is"),
        (["cat", "dog", float("nan")], TypeError, "label 2 is nan"),
        (["cat", "dog", ["n1", "owl"]], TypeError, "label 2 is"),
        (
            json.loads('{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "owl"]}'),
            TypeError,
            r"label 0 is \['n1', 'cat'\]",
        ),
        ({0: "cat", 2: "owl"}, ValueError, "lack 1$"),
        ({1: "cat", 2: "dog", 3: "owl"}, ValueError, "0 to 2.*lack 0 and have also 3"),
        ({0: "cat", "0": "dog", 1: "owl"}, ValueError, "class 0.*cat.*dog"),
        ({"cat": 0, "dog": 1, "owl": 1}, ValueError, "class 1.*dog.*owl"),
        (pd.Series(ANIMALS, index=[0, 1, 1]), ValueError, "class 1.*dog.*owl"),
        (pd.Series(ANIMALS, index=[3, 5, 9]), ValueError, "lack 0, 1, 2 and have also 3, 5, 9"),
        ({"cat": "dog", "dog": "owl", "owl": "cat"}, TypeError, "index"),
        ({0.5: "cat", 1: "dog", 2: "owl"}, TypeError, "index"),
        ({-1: "cat", 0: "dog", 1: "owl"}, ValueError, "lack 2 and have also -1"),
        ({}, ValueError, "lack 0, 1, 2"),
        (["cat", "dog"], ValueError, r"\b2 labels.*\b3 classes"),
        (itertools.repeat("cat"), ValueError, "more than 3 labels.*3 classes"),
    ],
)
def test_labels_without_one_meaning_are_rejected(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_labels(labels, 3)


def test_every_label_of_emnist_is_its_own_class() -> None:
    labels = string.digits + string.ascii_uppercase + string.ascii_lowercase
    net = Network(classifier(62), size=8, labels=list(labels))
    picker = ClassPicker(net.labels)
    for i, label in enumerate(labels):
        assert net.class_index(label) == net.class_index(f" {label}\n") == picker.find(label) == i


def test_exact_label_comes_before_one_in_another_case() -> None:
    labels = ("Cardigan", "tabby", "cardigan", "Égyptian cat", "STRASSE")
    assert [find_class(labels, text, "net") for text in ("cardigan", "Cardigan", "TABBY", "égyptian CAT", "straße")] == [
        2, 0, 1, 3, 4,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'CARDIGAN'.*several.*0 \(Cardigan\), 2 \(cardigan\)"):
        find_class(labels, "CARDIGAN", "net")


def test_every_label_of_imagenet_is_its_own_class() -> None:
    labels = models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert [find_class(labels, label, "net") for label in labels] == list(range(1000))


def test_label_of_two_classes_is_rejected_with_their_indices(image: np.ndarray) -> None:
    from convis_widgets.techniques import occlusion, pointing_game

    net = Network(classifier(4), size=16, labels=["sunglass", "sunglasses", "owl", "sunglasses"])
    for use in (
        lambda: net.class_index("sunglasses"),
        lambda: next(occlusion(net, image, target="sunglasses")),
        lambda: next(pointing_game(net, [(image, "sunglasses", np.ones((16, 16), bool))])),
    ):
        with pytest.raises(ValueError, match=r"'sunglasses'.*1 \(sunglasses\), 3 \(sunglasses\).*index"):
            use()
    assert net.class_index("SUNGLASS") == 0
    picker = ClassPicker(net.labels)
    picker.box.value = "sunglasses"
    assert (picker.value, picker.hint.value) == (1, "also: 3  sunglasses")


def test_digit_is_a_label_before_it_is_an_index() -> None:
    labels = ("7", "1", "0")
    picker = ClassPicker(labels)
    assert [picker.find(text) for text in ("7", "1", "0", "2", "2  0")] == [0, 1, 2, 2, 2]
    assert find_class(labels, "7", "net") == 0
    assert find_class(labels, 1, "net") == 1
    with pytest.raises(ValueError, match="'2' in net.*without quotes"):
        find_class(labels, "2", "net")


def test_label_that_predict_returns_is_that_class(squeezenet: Network, real: Path) -> None:
    from convis_widgets.techniques import occlusion

    file = real / "imagenet_sample" / "474_n02963159.jpg"
    (label, probability), *_ = squeezenet.predict(file)
    assert (label, squeezenet.class_index(label), squeezenet.class_index("Cardigan")) == ("cardigan", 474, 264)
    frame = next(occlusion(squeezenet, file, target=label, patch_size=112, stride=112))
    assert frame.scalars["probability"] == pytest.approx(probability, abs=1e-5)


def test_search_prefers_label_then_word_then_part() -> None:
    labels = ("tiger shark", "tiger", "tigercat", "Bengal tiger", "great Tiger")
    assert search_labels(labels, "tiger") == [1]
    assert search_labels(labels, "TIGER") == [1]
    assert search_labels(labels, "shark") == [0]
    assert search_labels(labels, "tig") == [0, 1, 2]
    assert search_labels(labels, "engal") == [3]
    assert search_labels(labels, "zebra") == match_labels(labels, "tige") == []


def test_label_dict_of_wrong_length_names_classes_of_the_network() -> None:
    labels: Mapping[str, int] = {"cat": 0, "dog": 1}
    with pytest.raises(ValueError, match="classes 0 to 2.*lack 2"):
        Network(classifier(3), size=8, labels=labels)
