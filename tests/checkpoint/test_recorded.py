"""A run that ijepa_ds 0.1 wrote (2 ranks, ZeRO-2, float32, on a CPU) and its export still work.

`tests/recorded/run-0.1` has the images, the run directory with the checkpoints of steps 2 and 6, and `export`, made from
step 6 in the format of Hugging Face. The paths in its config.yaml are of another machine.
"""

import shutil
from pathlib import Path

import pytest
import torch

import ijepa_ds
from ijepa_ds.checkpoint.folder import check_files
from ijepa_ds.checkpoint.reader import CheckpointReader, newest
from tests.dist.launched import Run, prepare

KINDS = ("master", "exp_avg", "exp_avg_sq", "ema")
OPTIONS = (
    "masks.min_keep=1",
    "model.width=16",
    "model.heads=2",
    "run.checkpoint_every=2",
    "run.keep_last=3",
    "optimization.steps=6",
)


@pytest.fixture
def recorded(repository: Path) -> Path:
    return repository / "tests" / "recorded" / "run-0.1"


def copy_run(recorded: Path, run: Path, *steps: int) -> None:
    """The run directory with the checkpoints of `steps` only."""
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "images.index"):
        shutil.copy(recorded / name, run)
    for step in steps:
        name = f"step_{step:08d}"
        shutil.copytree(recorded / "checkpoints" / name, run / "checkpoints" / name)


def test_its_newest_checkpoint_is_whole_and_opens(recorded: Path, tmp_path: Path) -> None:
    copy_run(recorded, tmp_path / "run", 2, 6)
    reader = newest(tmp_path / "run")
    assert reader is not None and reader.manifest["step"] == 6 and reader.manifest["versions"]["ijepa_ds"] == "0.1.0"
    assert len(check_files(reader.folder)["files"]) == 2  # checksums match
    for kind in KINDS:
        assert reader.names(kind)
        for name in reader.names(kind):
            assert reader.read(kind, name).isfinite().all() and reader.numel(f"{kind}/{name}")


def test_its_run_and_its_export_give_the_same_features(recorded: Path, tmp_path: Path) -> None:
    copy_run(recorded, tmp_path / "run", 2, 6)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    copy_run(recorded, tmp_path / "older", 2)
    features = []
    for path in (tmp_path / "run", recorded / "export", tmp_path / "older"):
        encoder, _ = ijepa_ds.load_encoder(path)
        with torch.no_grad():
            features.append(encoder(images))
    of_run, of_export, of_step_2 = features
    assert of_run.shape == (3, 16, 16)
    torch.testing.assert_close(of_run, of_export, rtol=0, atol=1e-6)
    assert (of_run - of_step_2).abs().max() > 1e-4  # the comparison can fail


@pytest.mark.dist
def test_training_continues_from_it_to_the_weights_it_reached_itself(recorded: Path, tmp_path: Path) -> None:
    """With the images in another folder: the index that a run keeps compares names and sizes, not paths and times."""
    prepare(tmp_path, images=0)
    shutil.copytree(recorded / "images", tmp_path / "images")
    copy_run(recorded, tmp_path / "out", 2)
    run = Run(tmp_path, *OPTIONS)
    assert run.wait() == [0, 0], run.output
    assert "step_00000002 (step 2)" in run.output and "SKIPPED" not in run.output
    expected = CheckpointReader(recorded / "checkpoints" / "step_00000006")
    found = CheckpointReader(tmp_path / "out" / "checkpoints" / "step_00000006")
    assert found.manifest["fingerprint"] == expected.manifest["fingerprint"]
    assert found.manifest["plan"]["checksum"] == expected.manifest["data_checksum"]
    before = CheckpointReader(recorded / "checkpoints" / "step_00000002")
    for kind in KINDS:
        assert found.names(kind) == expected.names(kind)
        for name in found.names(kind):
            torch.testing.assert_close(found.read(kind, name), expected.read(kind, name), rtol=0, atol=1e-6)
    name = "encoder.blocks.0.attn.qkv.weight"
    assert (before.read("master", name) - expected.read("master", name)).abs().max() > 1e-5  # four steps change it
