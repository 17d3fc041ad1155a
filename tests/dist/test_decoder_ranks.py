"""The decoder under ZeRO, at every stage, on two ranks: what one process learns without DeepSpeed; each continues the other."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.decoder import network
from tests.weights_cases import write_run

pytest.importorskip("diffusers", reason="NO DIFFUSERS: the decoder was not tested (pip install 'ijepa_ds[decoder]')")
pytestmark = pytest.mark.dist
REPOSITORY = Path(__file__).parents[2]


def options(place: Path, out: str, steps: int) -> list[str]:
    """A decoder of 16 pixels; --steps would change the schedule, so shorter trainings are cut off by a full disk."""
    fixed = ["--checkpoint", str(place / "run"), "--data", str(place / "images"), "--out", str(place / out)]
    small = ["--size", "16", "--channels", "16,16", "--batch-size", "8", "--device", "cpu", "--condition", "patches"]
    return [*fixed, *small, "--steps", str(steps), "--save-every", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, pictures, and what one process makes of them: `plain` after 4 steps, `half` the same after 2."""
    folder = tmp_path_factory.mktemp("decoder")
    write_run(folder / "run")
    (folder / "images").mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:02d}.png")
    original = network.save

    def keep_the_first(out: Path, *rest: object) -> None:
        original(out, *rest)  # type: ignore[arg-type]
        if (out / "state.pt").is_file() and not (folder / "half").exists():
            shutil.copytree(out, folder / "half")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "save", keep_the_first)
        assert cli.main(["decoder", "train", *options(folder, "plain", 4)]) == 0
    return folder


def state(folder: Path) -> dict:
    return torch.load(folder / "state.pt", weights_only=True)


def assert_equal(one: dict, other: dict) -> None:
    assert one["step"] == other["step"] and one["task"] == other["task"]
    for kind in one["tensors"]:
        assert one["tensors"][kind].keys() == other["tensors"][kind].keys()
        for name, value in one["tensors"][kind].items():
            if name.endswith("to_k.bias"):
                continue  # its gradient is 0 but for rounding, of which Adam makes steps
            theirs = other["tensors"][kind][name].view_as(value)
            assert float((value - theirs).norm()) <= 1e-3 * max(1e-6, float(value.norm())), (kind, name)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_learn_what_one_process_learns(ranks, place: Path, stage: int) -> None:
    out = f"zero{stage}"
    if stage == 2:
        shutil.copytree(place / "half", place / out)  # continues at step 2 what one process began
    arguments = [*options(place, out, 4), "--deepspeed_config", str(REPOSITORY / "ds_configs" / f"zero{stage}.json")]
    accumulated = ["--max-micro-batch", "2"] if stage == 1 else []
    ranks(2).run("train", module="tests.dist.jobs_decoder", arguments=[*arguments, *accumulated])
    assert_equal(state(place / "plain"), state(place / out))
    ours, theirs = (network.load(place / name)[0].state_dict() for name in ("plain", out))
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-4) for name in ours if "to_k" not in name)


def test_bfloat16_and_a_batch_that_cannot_be_shared(ranks, place: Path) -> None:
    config = ["--deepspeed_config", str(REPOSITORY / "ds_configs" / "zero3.json")]
    low = [*options(place, "low", 2), *config, "--precision", "bfloat16"]
    ranks(2).run("train", module="tests.dist.jobs_decoder", arguments=low)
    average = state(place / "low")["tensors"]["average"]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in average.values())
    with pytest.raises(AssertionError, match="--batch-size: 7 images cannot be shared equally by 2"):
        arguments = [*options(place, "odd", 2), *config, "--batch-size", "7"]
        ranks(2).run("train", module="tests.dist.jobs_decoder", arguments=arguments)
