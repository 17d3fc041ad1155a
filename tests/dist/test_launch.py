"""The real entry points as a user starts them: training, resuming, and being refused."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds import config
from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.checkpoint.run_lock import lock
from ijepa_ds.counter import ORDER_VERSION
from ijepa_ds.training.ending import last_words
from ijepa_ds.weights import read_encoder
from tests.dist.launched import TINY
from tests.dist.launches import losses, refused, start

pytestmark = pytest.mark.dist


def test_two_ranks_zero3_through_the_launcher_then_resume_exactly(place: Path) -> None:
    straight = start(place, "run.dir=straight", ranks=2, stage=3)
    assert straight.returncode == 0, straight.stdout + straight.stderr
    # the same run, interrupted after step 3 (as a crash after its checkpoint would leave it), then the same command
    assert start(place, "run.dir=broken", "run.checkpoint_every=3", ranks=2, stage=3).returncode == 0
    shutil.rmtree(place / "broken" / "checkpoints" / "step_00000006")
    again = start(place, "run.dir=broken", "run.checkpoint_every=3", ranks=2, stage=3, command=True)
    assert again.returncode == 0 and "step 3" in again.stdout, again.stdout + again.stderr
    assert "done: 6 steps, loss " in again.stdout and "checkpoints/step_00000006, metrics.jsonl, logs" in again.stdout
    assert f"next           ijepa-ds eval knn --checkpoint {place / 'broken'} --train TRAIN" in again.stdout
    for run in ("straight", "broken"):
        assert json.loads((place / run / "completed.json").read_text())["steps"] == 6
        for name in ("config.yaml", "deepspeed.json", "environment.json"):
            assert (place / run / name).stat().st_size > 0
    assert losses(place / "broken") == losses(place / "straight")
    one, other = (CheckpointReader(place / run / "checkpoints" / "step_00000006") for run in ("straight", "broken"))
    for name in one.names("ema"):
        assert (one.read("ema", name) == other.read("ema", name)).all(), name
    encoder, facts = read_encoder(place / "straight")
    assert facts.step == 6 and encoder.patch_embed.proj.weight.shape == (32, 3, 8, 8)


def test_the_last_words_name_a_format_that_the_encoder_has(place: Path) -> None:
    for given, form in (((), "hf"), (("model.drop_path=0.1",), "hf"), (("model.registers=2",), "safetensors")):
        cfg = config.load(place / "run.yaml", [*TINY, *given])
        assert f"export --run {cfg.run.dir} --format {form} --out" in last_words(cfg, 3)


def test_one_process_equals_two(place: Path) -> None:
    """The same samples, crops and masks whatever the number of ranks: the first loss is the same number."""
    arguments = ("model.precision=float32", "optimization.steps=3")
    assert start(place, "run.dir=one", *arguments, command=True).returncode == 0
    assert start(place, "run.dir=two", *arguments, ranks=2, stage=1, monitor=True).returncode == 0
    assert list((place / "monitor" / "deepspeed").glob("events.*"))  # DeepSpeed's own monitor works beside ours
    one, two = losses(place / "one"), losses(place / "two")
    assert one.keys() == two.keys() == {1, 2, 3}
    np.testing.assert_allclose([one[s] for s in one], [two[s] for s in one], rtol=1e-5)


def test_the_precision_is_chosen_once_and_kept(place: Path) -> None:
    arguments = ("model.precision=auto", "run.checkpoint_every=2", "optimization.steps=4")
    first = start(place, *arguments, ranks=2)
    assert first.returncode == 0, first.stdout + first.stderr
    chosen = config.load(place / "out" / "config.yaml").model.precision
    log = place / "out" / "logs" / "rank_00000.log"
    assert f"model.precision auto: {chosen} (float32 " in log.read_text() and f", {chosen}; " in first.stdout
    assert ("bf16" in json.loads((place / "out" / "deepspeed.json").read_text())) == (chosen == "bfloat16")
    shutil.rmtree(place / "out" / "checkpoints" / "step_00000004")
    again = start(place, *arguments, ranks=2)
    assert again.returncode == 0 and "step 2" in again.stdout, again.stdout + again.stderr
    assert f"model.precision auto: {chosen} (as in " in log.read_text()
    other = {"float32": "bfloat16", "bfloat16": "float32"}[chosen]
    assert f"model.precision: {chosen} -> {other}" in refused(start(place, *arguments[1:], f"model.precision={other}"))


def test_bad_input_is_one_message(place: Path) -> None:
    (place / "empty").mkdir()
    (place / "junk").mkdir()
    (place / "junk" / "a.jpg").write_text("not an image")
    assert "empty" in refused(start(place, "data.source=empty"))
    assert "junk" in refused(start(place, "data.source=junk"))
    assert "nowhere" in refused(start(place, "data.source=nowhere"))
    message = refused(start(place, "optimization.learning_rate=1", "modle.name=huge"))
    assert "learning_rate" in message and "modle" in message  # all at once
    assert start(place, "run.dir=mine", "optimization.steps=2").returncode == 0
    message = refused(start(place, "run.dir=mine", "optimization.lr=0.002", "optimization.steps=2"))
    assert "another configuration" in message and "lr" in message
    (place / "run.yaml").unlink()
    assert "run.yaml" in refused(start(place))


def test_a_checkpoint_of_another_order_version_is_refused(place: Path) -> None:
    assert start(place, "optimization.steps=2").returncode == 0
    path = place / "out" / "checkpoints" / "step_00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["plan"]["version"] == ORDER_VERSION
    manifest["plan"]["version"] += 1
    path.write_text(json.dumps(manifest))
    message = refused(start(place, "optimization.steps=2"))
    assert f"order version {ORDER_VERSION + 1}" in message and f"order version {ORDER_VERSION}:" in message


def test_a_world_size_that_does_not_divide_the_batch(place: Path) -> None:
    result = start(place, "optimization.batch_size=9", ranks=2, command=True)
    assert "cannot be shared equally by 2 devices" in refused(result)


def test_broken_checkpoints_are_never_a_silent_restart(place: Path) -> None:
    assert start(place, "optimization.steps=2").returncode == 0
    assert list_steps(place / "out") == [2]
    shard = next((place / "out" / "checkpoints" / "step_00000002").glob("*.safetensors"))
    os.truncate(shard, 100)
    message = refused(start(place, "optimization.steps=2"))
    assert shard.name in message and "refusing to start from scratch" in message
    assert "step_00000009" in refused(start(place, "optimization.steps=2", "run.resume=out/checkpoints/step_00000009"))


def test_a_completed_run_is_left_alone(place: Path) -> None:
    assert start(place, "optimization.steps=2").returncode == 0
    marker = json.loads((place / "out" / "completed.json").read_text())
    again = start(place, "optimization.steps=2")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert json.loads((place / "out" / "completed.json").read_text()) == marker and marker["loss"] > 0


def test_a_run_directory_in_use_is_refused(place: Path) -> None:
    (place / "out").mkdir()
    with lock(place / "out"):
        assert f"in use by another run (process {os.getpid()}" in refused(start(place, "optimization.steps=2"))
    assert start(place, "optimization.steps=2").returncode == 0  # a lock without an owner does not hold


def test_checkpoints_that_vanished_are_noticed(place: Path) -> None:
    assert start(place, "optimization.steps=2").returncode == 0
    shutil.rmtree(place / "out" / "checkpoints")
    assert "refusing to start from scratch" in refused(start(place, "optimization.steps=2"))


def test_only_one_rank_sees_a_problem(place: Path) -> None:
    """Every rank stops with the message of the one that failed, instead of waiting for it."""
    (place / "run.py").write_text(
        "import os, sys\n"
        "from ijepa_ds.errors import UserError\n"
        "from ijepa_ds.training import images\n"
        "open_index = images.open_index\n"
        "def broken(*a):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise UserError('data.source: not mounted here')\n"
        "    return open_index(*a)\n"
        "images.open_index = broken\n"
        "from ijepa_ds.train import main\n"
        "sys.exit(main())\n"
    )
    message = refused(start(place, ranks=2, program="run.py"))
    assert "not mounted here" in message and f"only rank 1 on host {socket.gethostname()}" in message


def vanish_while_training(place: Path, pattern: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run whose images vanish once they are indexed; there are enough steps to meet all of them."""
    (place / "run.py").write_text(
        "import pathlib, sys\n"
        "from ijepa_ds.training import loop, start\n"
        "train = loop.train\n"
        "def then_vanish(state, *rest):\n"
        "    start.barrier()\n"
        f"    for path in pathlib.Path('images').glob('{pattern}') if state.rank == 0 else ():\n"
        "        path.unlink()\n"
        "    start.barrier()\n"
        "    return train(state, *rest)\n"
        "loop.train = then_vanish\n"
        "from ijepa_ds.train import main\n"
        "sys.exit(main())\n"
    )
    return start(place, "optimization.steps=6", *overrides, program="run.py")


def test_an_image_that_vanishes_is_named_and_kept_in_the_checkpoint(place: Path) -> None:
    gone = str(sorted((place / "images" / "class1").iterdir())[0])
    result = vanish_while_training(place, gone.removeprefix(f"{place}/images/"))
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (place / "out" / "bad_samples.jsonl").read_text().splitlines()]
    assert [(Path(row["path"]).name, row["reason"]) for row in rows] == [(Path(gone).name, "No such file or directory")]
    (saved,) = CheckpointReader(place / "out" / "checkpoints" / "step_00000006").manifest["bad_samples"]
    assert saved == [rows[0]["path"], rows[0]["reason"], rows[0]["index"]]


def test_too_many_vanished_images_stop_the_run_with_the_list(place: Path) -> None:
    result = vanish_while_training(place, "class1/*")
    assert result.returncode != 0
    text = result.stderr + result.stdout
    assert "cannot be read, more than data.max_bad_share = 0.25" in text and "class1/" in text and "No such file" in text
    assert len((place / "out" / "bad_samples.jsonl").read_text().splitlines()) > 6


def test_a_port_in_use_is_said(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = start(place, ranks=2, port=taken.getsockname()[1])
    assert "--master_port" in refused(result)
    assert result.returncode == 75  # the port may be free at the next attempt
