"""What the soak's look at the images finds: it must not be satisfied with everything."""

import json
from pathlib import Path

import pytest

from tests.dist.soak_log import check_samples


def attempt(folder: Path, number: int, steps: dict[int, list[int]], ranks: int = 2) -> None:
    """The log of an attempt: each step's images dealt to the ranks."""
    place = folder / f"attempt-{number}-of-{ranks}"
    place.mkdir()
    for rank in range(ranks):
        lines = [json.dumps({"step": step, "samples": images[rank::ranks]}) for step, images in steps.items()]
        (place / f"samples-{rank}-1.jsonl").write_text("\n".join(lines) + "\n")


TWO_EPOCHS = {0: [3, 1], 1: [0, 2], 2: [0, 1], 3: [2, 3]}


def test_overlapping_attempts_on_other_numbers_of_ranks_are_right(tmp_path: Path) -> None:
    attempt(tmp_path, 1, {step: TWO_EPOCHS[step] for step in (0, 1)})
    attempt(tmp_path, 2, {step: TWO_EPOCHS[step] for step in (1, 2)}, ranks=1)
    (tmp_path / "attempt-2-of-1" / "samples-0-2.jsonl").write_text('{"step": 3, "sam')
    attempt(tmp_path, 10, {step: TWO_EPOCHS[step] for step in (2, 3)})
    assert check_samples(tmp_path, 4, 2, 4) == 2


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({3: [2, 3]}, "only 1 was reached"),
        ({1: [0, 3], 2: [0, 1], 3: [2, 3]}, "other images in step 1"),
        ({2: [0, 1], 3: [2, 1]}, "epoch 1 is not each image once"),
        ({2: [0, 1]}, "steps are missing"),
        ({1: [0], 2: [0, 1], 3: [2, 3]}, "step 1 has 1 images"),
        ({0: [3, 1], 2: [0, 1], 3: [2, 3]}, "missing between others"),
    ],
)
def test_what_is_wrong_is_found(second: dict[int, list[int]], text: str, tmp_path: Path) -> None:
    attempt(tmp_path, 1, {step: TWO_EPOCHS[step] for step in (0, 1)})
    attempt(tmp_path, 2, second)
    with pytest.raises(AssertionError, match=text):
        check_samples(tmp_path, 4, 2, 4)
