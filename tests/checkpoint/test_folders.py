"""`ijepa-ds checkpoint`, what is kept and deleted, and files that were made to do harm."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ijepa_ds import cli, config
from ijepa_ds.checkpoint import writer
from ijepa_ds.checkpoint.folder import checksum, find_steps, folder_name, list_steps, write_last_step
from ijepa_ds.checkpoint.reader import CheckpointReader, newest
from ijepa_ds.checkpoint.run_lock import lock
from ijepa_ds.errors import CheckpointError
from tests.checkpoint_cases import flip, truncate, write


def shard(run_dir: Path, step: int) -> Path:
    return next((run_dir / "checkpoints" / folder_name(step)).glob("*.safetensors"))


def attempt(run_dir: Path, step: int, keep_last: int = 2, keep_every: int = 0) -> None:
    """A save as a rank does it: write, then commit."""
    path = writer.partial_folder(run_dir, step, "a") / "shard_00000_of_00001.safetensors"
    entry = writer.write_shard(path, {"ema/w": torch.full((4,), float(step))}, {"ema/w": 0})
    manifest = {"format": 1, "step": step, "adam_step": step, "files": [entry | {"rank": 0, "host": "here"}]}
    writer.commit(run_dir, step, "a", manifest, keep_last, keep_every)


def test_written_ones_are_read_back_and_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        attempt(tmp_path, step, keep_last=2, keep_every=20)
    assert list_steps(tmp_path) == [20, 40, 50]
    reader = newest(tmp_path)
    assert reader is not None and reader.read("ema", "w").tolist() == [50.0] * 4
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_broken_one_does_not_count_as_kept(tmp_path: Path) -> None:
    attempt(tmp_path, 10)
    attempt(tmp_path, 20)
    truncate(shard(tmp_path, 20))
    attempt(tmp_path, 30)
    assert 10 in list_steps(tmp_path)  # the only older one that helps
    attempt(tmp_path, 40)
    assert list_steps(tmp_path) == [30, 40]


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_save_after_a_fallback_is_kept_although_the_broken_one_is_newer(keep_last: int, tmp_path: Path) -> None:
    """Of the right size but with a flipped bit: only reading it all tells that it is broken."""
    attempt(tmp_path, 10)
    attempt(tmp_path, 20)
    flip(shard(tmp_path, 20))
    attempt(tmp_path, 15, keep_last)
    assert 15 in list_steps(tmp_path)
    reader = newest(tmp_path)
    assert reader is not None and reader.manifest["step"] == 15


def test_an_uncommitted_save_changes_nothing(tmp_path: Path) -> None:
    """A kill between any two steps of a save leaves the one before as the newest."""
    attempt(tmp_path, 10)
    path = writer.partial_folder(tmp_path, 20, "b") / "shard_00000_of_00001.safetensors"
    entry = writer.write_shard(path, {"ema/w": torch.zeros(4)}, {"ema/w": 0})
    assert list_steps(tmp_path) == find_steps(tmp_path) == [10]
    (path.parent / "manifest.json").write_text(json.dumps({"format": 1, "step": 20, "adam_step": 20, "files": [entry]}))
    assert list_steps(tmp_path) == [10]
    writer.sweep(tmp_path, attempt="b")
    assert path.exists()
    writer.sweep(tmp_path)
    assert not path.parent.exists() and list_steps(tmp_path) == [10]


def test_shards_that_the_committing_rank_does_not_see_are_named(tmp_path: Path) -> None:
    attempt(tmp_path, 10)
    manifest = {"files": [{"file": "shard_00001_of_00002.safetensors", "bytes": 9, "rank": 1, "host": "node7"}]}
    writer.partial_folder(tmp_path, 20, "a").mkdir()
    with pytest.raises(CheckpointError, match="rank 1 on node7.*all hosts share"):
        writer.commit(tmp_path, 20, "a", manifest, 2, 0)
    assert list_steps(tmp_path) == [10]


def test_what_cannot_be_written_names_path_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    path = writer.partial_folder(tmp_path, 20, "a") / "shard.safetensors"
    with pytest.raises(CheckpointError, match=rf"{path}: .*; 4,000 bytes are needed, [\d,]+ are free in {tmp_path}"):
        writer.write_shard(path, {"ema/w": torch.zeros(1000)}, {"ema/w": 0})


def test_a_file_that_differs_when_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any tensor, also the sign of a zero; in the header; or without a tensor."""
    tensors = {"ema/w": torch.tensor([1.0, float("nan"), -0.0]), "master/w": torch.arange(3.0)}
    path, starts = tmp_path / "a" / "shard.safetensors", {"ema/w": 3, "master/w": 6}
    assert writer.write_shard(path, tensors, starts)["sha256"] == checksum(path)
    wrong = [
        ({**tensors, "ema/w": torch.tensor([1.0, float("nan"), 0.0])}, starts, "ema/w differs"),
        ({**tensors, "master/w": torch.tensor([0.0, 1.0, 2.0000002])}, starts, "master/w differs"),
        (tensors, {"ema/w": 3, "master/w": 7}, "header differs"),
        ({"ema/w": tensors["ema/w"]}, starts, "master/w"),
    ]
    for written, places, reason in wrong:

        def save(_: object, path: Path, __: object, written: dict = written, places: dict = places) -> None:
            save_file(written, path, metadata={"starts": json.dumps(places)})

        monkeypatch.setattr(writer, "save_tensors", save)
        with pytest.raises(CheckpointError, match=rf"{path}: .*{reason}.* bytes are needed"):
            writer.write_shard(path, tensors, starts)


def command(*words: str) -> int:
    return cli.main(["checkpoint", *words])


def test_list_verify_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20, 30):
        attempt(tmp_path, step, keep_last=9)
    assert command("list", str(tmp_path)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "10", "20", "30"]
    flip(shard(tmp_path, 20))
    assert command("list", str(tmp_path)) == 0  # sizes are right
    capsys.readouterr()
    assert command("verify", str(tmp_path), "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [bool(row["problem"]) for row in rows] == [False, True, False] and "checksum" in rows[1]["problem"]
    assert command("prune", str(tmp_path), "--keep-last", "1") == 0
    assert list_steps(tmp_path) == [30]


@pytest.mark.parametrize("text", [None, 7, "model: 3", "model: {", "model: !!python/object/apply:os.mkdir [executed]"])
def test_a_configuration_that_cannot_be_read_does_not_stop_the_list(
    text: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(tmp_path, 10)
    path = tmp_path / "checkpoints" / folder_name(10) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": text}))
    assert command("list", str(tmp_path)) == 0
    assert "?/?" in capsys.readouterr().out and not Path("executed").exists()


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    """`eval.every` marks it."""
    attempt(tmp_path, 10, keep_last=9)
    (tmp_path / writer.BEST).write_text(json.dumps({"step": 10}))
    for step in (20, 30, 40):
        attempt(tmp_path, step, keep_last=1)
    assert list_steps(tmp_path) == [10, 40]


def test_prune_refuses_where_it_would_hurt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", str(tmp_path / "nowhere")) == 2
    attempt(tmp_path, 10)
    attempt(tmp_path, 20)
    with lock(tmp_path):
        assert command("prune", str(tmp_path), "--keep-last", "1") == 2
        assert "in use by another run" in capsys.readouterr().err
    flip(shard(tmp_path, 20))
    assert command("prune", str(tmp_path), "--keep-last", "1") == 2
    assert "newest checkpoint is broken" in capsys.readouterr().err and list_steps(tmp_path) == [10, 20]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_in_a_shard_s_place_is_never_executed(tmp_path: Path) -> None:
    """Its checksum is right: who can write the shard can write the manifest."""
    folder, loot = write(tmp_path, 10, torch.zeros(8), []), tmp_path / "executed"
    path = shard(tmp_path, 10)
    for text in (pickle.dumps(Bomb(loot)), b"\x80" * 7, b""):
        path.write_bytes(text)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][0] |= {"bytes": len(text), "sha256": checksum(path)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="not a shard"):
            CheckpointReader(folder)
    torch.save({"w": Bomb(loot)}, path)
    with pytest.raises(CheckpointError):
        CheckpointReader(folder)
    assert not loot.exists()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "..", "a\\b"])
def test_a_manifest_that_leads_outside_is_refused(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, 10, torch.zeros(8), [])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["file"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="refusing to open"):
        CheckpointReader(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {"format": 1, "step": 1, "adam_step": 1, "files": []},
        {"format": 1, "step": 1, "adam_step": 1, "files": [7]},
        {"format": 1, "step": 1, "adam_step": 1, "files": [{"file": 3, "bytes": 1, "sha256": ""}]},
        {"format": 1, "step": 1, "adam_step": 1, "files": [{"file": "x", "bytes": "1", "sha256": ""}]},
    ],
)
def test_a_manifest_of_nonsense_is_one_message(manifest: object, tmp_path: Path) -> None:
    folder = write(tmp_path, 10, torch.zeros(8), [])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="manifest"):
        CheckpointReader(folder)


def test_gaps_and_overlaps_between_shards_are_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 10, torch.zeros(8), [4])
    path = sorted(folder.glob("*.safetensors"))[1]
    for start in (3, 5):
        save_file({"ema/w": torch.zeros(4)}, path, metadata={"starts": json.dumps({"ema/w": start})})
        with pytest.raises(CheckpointError, match="gap or an overlap"):
            CheckpointReader(folder, verify=False).numel("ema/w")


def test_a_yaml_tag_is_refused_not_obeyed(tmp_path: Path) -> None:
    loot = tmp_path / "executed"
    path = tmp_path / "run.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{loot}']\n")
    with pytest.raises(config.ConfigError):
        config.load(path, [])
    with pytest.raises(config.ConfigError):
        config.load(path, [f"run.dir=!!python/object/apply:os.mkdir ['{loot}']"])
    assert not loot.exists()


def test_a_checkpoint_that_vanished_is_still_asked_for(tmp_path: Path) -> None:
    attempt(tmp_path, 10)
    write_last_step(tmp_path, 20)
    assert find_steps(tmp_path) == [10, 20]
    reader = newest(tmp_path)
    assert reader is not None and reader.manifest["step"] == 10
