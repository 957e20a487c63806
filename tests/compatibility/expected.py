"""Networks of the table that are refused, or wrong for a known reason.

By name and check, "all" for every check. An entry of KNOWN_FAILURES that is right now fails its test and must be deleted.
"""

from __future__ import annotations

REFUSALS: dict[str, dict[str, str]] = {
    "tuple: features, logits": {
        "all": "FeaturesFirst returns several tensors: [0] (1, 8), [1] (1, 5); choose one with output=, a key, an index, or "
        "a function such as lambda output: output[0]"
    },
    "several answers per image": {
        "all": "Sequences does not return scores of an image, (N, classes), but (1, 3, 4); give output=, a function that "
        "makes (N, classes) of it, or wrap it in a module that returns class scores"
    },
    "argmax at the end": {
        "all": "Decision does not return scores of an image, (N, classes), but (1,) of int64; return the scores from which "
        "they are computed, before argmax or a threshold"
    },
}

KNOWN_FAILURES: dict[str, dict[str, str]] = {}
