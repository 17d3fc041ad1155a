"""The log of images of a soak: which of them went into the final weights, and how often."""

import json
from collections import Counter, defaultdict
from pathlib import Path


def check_samples(folder: Path, steps: int, batch: int, images: int) -> int:
    """Compare what all attempts of a run trained on; the number of whole epochs.

    Args:
        folder: has `attempt-K-of-RANKS` with a file a rank, lines {step, samples}; a last line may be cut off.
        steps: of the whole run.
        batch: images of a step.
        images: in an epoch; a multiple of `batch`.

    Raises:
        AssertionError: an attempt left a gap, took other images than another one for a step, or an epoch is not a
            permutation.
    """
    assert images % batch == 0
    of_step: dict[int, list[int]] = {}
    begun = -1  # steps that some attempt has begun, up to
    for attempt in sorted(folder.glob("attempt-*"), key=lambda path: int(path.name.split("-")[1])):
        seen = defaultdict(list)
        for file in attempt.glob("*.jsonl"):
            for text in file.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # its writer was killed
                seen[line["step"]] += line["samples"]
        if not seen:
            continue
        assert sorted(seen) == list(range(min(seen), max(seen) + 1)), f"{attempt}: steps are missing between others"
        assert min(seen) <= begun + 1, f"{attempt} begins at step {min(seen)}, but only {begun} was reached before"
        begun = max(begun, max(seen))
        for step, samples in seen.items():
            if len(samples) < batch:  # a rank was dead, or about to be: the step does not count
                assert step >= max(seen) - 1, f"{attempt}: step {step} has {len(samples)} images"
                continue
            before = of_step.setdefault(step, sorted(samples))
            assert before == sorted(samples), f"{attempt}: other images in step {step} than in an attempt before"
    assert sorted(of_step) == list(range(steps)), "steps are missing"
    whole = steps * batch // images
    for epoch in range(whole):
        counted = Counter(i for step in range(epoch * images // batch, (epoch + 1) * images // batch) for i in of_step[step])
        assert counted == Counter(range(images)), f"epoch {epoch} is not each image once: {counted.most_common(3)}"
    return whole
