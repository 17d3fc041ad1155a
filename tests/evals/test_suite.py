"""The tasks beside k-NN and logistic regression: low-shot, attentive, fine-tuning, scenes, ranks of features."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ijepa_ds import cli
from ijepa_ds.config.sizes import Size
from ijepa_ds.evals import attentive, finetune, lowshot, rank, scenes, sweep
from ijepa_ds.evals.features import extract, num_layers
from ijepa_ds.evals.folders import batches, crop_batches, read_pair
from ijepa_ds.evals.ranks import World, gather_rows
from ijepa_ds.evals.run import Settings, evaluate_folder, evaluate_pair
from ijepa_ds.evals.session import Session
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.scenes.command import render
from tests.evals_cases import HALF, Colours, clusters, write_images


def small_encoder(depth: int = 5, registers: int = 0) -> Encoder:
    encoder = Encoder(Size(32, depth, 2, 64, registers=registers), 4, 4)
    initialise(encoder, seed=0)
    return encoder


# --- features of several layers


@pytest.mark.parametrize("registers", [0, 3])
def test_last_four_layers_side_by_side(registers: int) -> None:
    encoder = small_encoder(registers=registers)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    four = extract(encoder, [images], HALF, HALF, "cpu", layers=4)
    assert num_layers(encoder) == 5 and four.shape == (3, 128)
    torch.testing.assert_close(four[:, -32:], extract(encoder, [images], HALF, HALF, "cpu"))
    short = small_encoder(3, registers)  # the same first three blocks: its output is the third layer of the other
    short.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in short.state_dict()})
    torch.testing.assert_close(four[:, 32:64], extract(short, [images], HALF, HALF, "cpu"))
    assert not encoder.blocks[2]._forward_hooks
    with pytest.raises(ValueError, match="layers: expected 1 to the encoder's 5 blocks"):
        extract(encoder, [images], HALF, HALF, "cpu", layers=6)


# --- low-shot


def test_lowshot_agrees_with_sklearn_and_chooses_away_from_the_test() -> None:
    (x, y), (test, wanted), (other, labels) = clusters(60), clusters(200, seed=1), clusters(300, seed=2)
    found = lowshot.evaluate(x, y, test, wanted, choose_features=other, choose_labels=labels, c=(0.001, 0.1, 10.0))
    scaler, scores = StandardScaler().fit(x), {}
    for c in (0.001, 0.1, 10.0):
        model = LogisticRegression(C=c, max_iter=5000).fit(scaler.transform(x), y)
        scores[c] = [100 * model.score(scaler.transform(a), b) for a, b in ((other, labels), (test, wanted))]
    best = max(scores, key=lambda c: scores[c][0])
    assert found["c"] == best and found["top1"] == pytest.approx(scores[best][1], abs=0.51)
    assert found["best_on_test"] == pytest.approx(max(test for _, test in scores.values()), abs=0.51)
    assert found["chosen_on_test"] == 0 and found["unconverged"] == 0
    assert lowshot.evaluate(x, y, test, wanted, c=(0.1,))["chosen_on_test"] == 1


def test_few_images_of_each_class() -> None:
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 3)
    few = lowshot.draw_per_class(labels, 10, seed=0)
    assert labels[few].bincount().tolist() == [10, 10, 3] and few.tolist() == sorted(set(few.tolist()))
    assert torch.equal(few, lowshot.draw_per_class(labels, 10, seed=0)) and not torch.equal(
        few, lowshot.draw_per_class(labels, 10, seed=1)
    )
    with pytest.raises(ValueError, match="--per-class"):
        lowshot.draw_per_class(labels, 0, seed=0)


def test_a_list_of_images(tmp_path: Path) -> None:
    names = ["ant/0.png", "ant/1.png", "bee/0.png", "bee/only.png"]
    file = tmp_path / "few.txt"
    file.write_text("only.png\nant/1.png\n\n")
    assert lowshot.find_listed(file, names).tolist() == [1, 3]
    for text, message in [("x.png\n", "--train lacks: x.png"), ("0.png", "match several images"), ("", "no names")]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            lowshot.find_listed(file, names)
    with pytest.raises(ValueError, match="--list.*not a file"):
        lowshot.find_listed(tmp_path / "absent", names)


# --- attentive


def test_attention_finds_what_the_average_hides() -> None:
    """One of nine tokens tells the class, and where it stands varies."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (600,), generator=generator)
    tokens = torch.randn(600, 9, 16, generator=generator)
    place = torch.randint(0, 9, (600,), generator=generator)
    tokens[torch.arange(600), place] = 0.1 * torch.randn(600, 16, generator=generator)
    tokens[torch.arange(600), place, labels] += 6.0
    recipe = attentive.Recipe(lr=(3e-3, 1e-9), weight_decay=(0.01,), epochs=12, batch_size=64)
    before = torch.get_rng_state()
    found = attentive.evaluate(
        lambda order: (tokens[:400][rows] for rows in order.split(64)), labels[:400],
        lambda order: (tokens[400:][rows] for rows in order.split(64)), labels[400:], 16, recipe,
    )["test"]  # fmt: skip
    assert found["lr 0.003 wd 0.01"] > 90 > 60 > found["lr 1e-09 wd 0.01"]  # recipes do not share weights
    assert torch.equal(before, torch.get_rng_state())


# --- fine-tuning


def test_finetuning_learns_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 24, "cow": 24})
    write_images(tmp_path / "test", {"ant": 10, "cow": 10})
    pair = read_pair(str(tmp_path / "train"), str(tmp_path / "test"))
    encoder = small_encoder(depth=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    recipe = finetune.Recipe(lr=1e-3, epochs=8, batch_size=12, mixup=0.2, rand_augment="", crop_scale=0.5)
    options = {"size": 16, "width": 32, "mean": HALF, "std": HALF, "recipe": recipe}
    sets = (pair.train.paths, pair.train.labels, pair.test.paths, pair.test.labels)
    found = finetune.evaluate(encoder, *sets, **options, workers=1)
    assert found["top1"] > 90 and math.isfinite(found["train_loss"])
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(parameter.grad is not None for parameter in encoder.parameters())
    assert states[0] == random.getstate() and (states[1] == np.random.get_state()[1]).all()
    assert torch.equal(states[2], torch.get_rng_state())


def test_layer_decay_counts_from_the_head() -> None:
    from timm.optim import param_groups_layer_decay

    model = finetune.Classifier(small_encoder(depth=3), 32, 2)
    scales = {}
    for group in param_groups_layer_decay(model, 0.05, layer_decay=0.5):
        for parameter in group["params"]:
            scales[id(parameter)] = (group["lr_scale"], group["weight_decay"])
    named = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    # timm's layers: stem, three blocks (the last with the final norm), head
    assert named["head.weight"] == (1.0, 0.05) and named["head.bias"] == (1.0, 0.0)
    blocks = [named[f"encoder.blocks.{i}.mlp.fc1.weight"][0] for i in range(3)]
    assert blocks == [0.125, 0.25, 0.5] and named["encoder.norm.weight"] == (0.5, 0.0)
    assert named["encoder.patch_embed.proj.weight"][0] == 0.0625
    assert named["encoder.blocks.0.norm1.weight"][1] == 0.0


# --- ranks of features


def test_rankme_and_lidar_know_how_many_directions_are_used() -> None:
    rng = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(32, 32, generator=rng))[0]
    for used in (1, 5, 20):
        sources = torch.linalg.qr(torch.randn(500, used, generator=rng))[0]  # equal singular values
        features = sources @ directions[:used]
        assert rank.rankme(features) == pytest.approx(used, rel=0.02)
        views = features[:, None] * 50 + 0.01 * torch.randn(500, 6, 32, generator=rng)
        assert rank.lidar(views) == pytest.approx(used, rel=0.05)
        shares = rank.spectrum(features)
        assert sum(shares) == pytest.approx(1) and sum(share > 1e-6 for share in shares) == used
    # directions that vary only within an image say nothing about images: LiDAR leaves them out, RankMe counts them
    views = (50 * torch.randn(300, 1, 32, generator=rng) @ directions[:3].T @ directions[:3]) + (
        torch.randn(300, 8, 32, generator=rng) @ directions[3:23].T @ directions[3:23] * 50
    )
    assert rank.lidar(views) < 6 < 15 < rank.rankme(views[:, 0])


def test_ranks_refuse_broken_features() -> None:
    features = torch.randn(10, 4)
    features[3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite for 1 of 10"):
        rank.evaluate(features)
    with pytest.raises(ValueError, match="two views"):
        rank.lidar(torch.randn(10, 1, 4))


def test_rank_needs_no_labels(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "flat", {".": 20})
    flat, out = str(tmp_path / "flat"), tmp_path / "out"
    arguments = ["eval", "rank", "--checkpoint", str(run_dir), "--which", "untrained", "--test", flat]
    assert cli.main([*arguments, "--out", str(out), "--views", "3", "--device", "cpu"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert {"RankMe", "LiDAR"} <= set(result["scores"]) and len(result["details"]["spectrum"]) == 20
    assert (out / "spectrum.png").is_file() and not (out / "scores.png").exists()
    arguments[1] = "knn"
    assert cli.main([*arguments, "--out", str(out)]) == 2 and "eval knn needs --train" in capsys.readouterr().err


# --- scenes


@pytest.mark.parametrize(("depth", "label"), [(7.5, 0), (8.0, 0), (8.01, 1), (8.5, 1), (9.2, 3), (9.9, 4), (10, 4), (10.1, 5)])
def test_distance_is_cut_as_in_vtab(depth: float, label: int) -> None:
    assert scenes.distance_label([{"pixel_coords": [1, 2, 30.0]}, {"pixel_coords": [1, 2, depth]}]) == label
    # VTAB's own expression
    cuts = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])
    assert np.max(np.where((cuts - depth) < 0)) == label


def test_our_scenes_and_clevrs_layout(tmp_path: Path) -> None:
    render(tmp_path / "ours", 16, 32, seed=0, workers=1, progress=False)
    told = json.loads((tmp_path / "ours" / "scenes.json").read_text())["scenes"]
    pair = scenes.read_scenes("count", str(tmp_path / "ours"), str(tmp_path / "ours" / "scenes.json"))
    assert pair.train.labels.tolist() == [len(scene["objects"]) - 3 for scene in told]
    assert len(pair.classes) == 8 and any("same scenes" in note for note in pair.notes)
    for part, count in (("train", 6), ("val", 4)):  # CLEVR_v1.0
        folder = tmp_path / "CLEVR_v1.0" / "images" / part
        folder.mkdir(parents=True)
        listed = []
        for i in range(count):
            Image.new("RGB", (32, 24)).save(folder / f"{i}.png")
            listed.append({"image_filename": f"{i}.png", "objects": told[i]["objects"]})
        (tmp_path / "CLEVR_v1.0" / "scenes").mkdir(exist_ok=True)
        (tmp_path / "CLEVR_v1.0" / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": listed}))
    images = tmp_path / "CLEVR_v1.0" / "images"
    pair = scenes.read_scenes("distance", str(images / "train"), str(images / "val"))
    assert (len(pair.train.labels), len(pair.test.labels), len(pair.classes)) == (6, 4, 6)
    nearest = min(item["pixel_coords"][2] for item in told[0]["objects"])
    assert pair.train.labels[0] == sum(nearest > cut for cut in (8, 8.5, 9, 9.5, 10))
    (images / "train" / "3.png").unlink()
    with pytest.raises(ValueError, match="1 of 6 images.*not there, such as .*3.png"):
        scenes.read_scenes("distance", str(images / "train"), str(images / "val"))
    with pytest.raises(ValueError, match="--test: no scenes for .*expected .*scenes.json or .*CLEVR_CLEVR_v1.0_scenes.json"):
        scenes.read_scenes("count", str(tmp_path / "ours"), str(tmp_path / "CLEVR_v1.0"))
    (tmp_path / "ours" / "scenes.json").write_text('{"scenes": [{"image_filename": "a", "objects": [1]}]}')
    with pytest.raises(ValueError, match="1 objects, expected 3 to 10"):
        scenes.read_scenes("count", str(tmp_path / "ours"), str(images / "val"))


def test_scenes_through_the_command(run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, (name, num) in enumerate((("train", 48), ("test", 16))):
        render(tmp_path / name, num, 16, seed=seed, workers=1, progress=False)
    arguments = ["--checkpoint", str(run_dir), "--which", "untrained", "--baseline", "pixels", "--epochs", "2"]
    arguments += ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--out", str(tmp_path / "out")]
    assert cli.main(["eval", "distance", *arguments, "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["frame"] == "whole"
    assert set(result["scores"]) == {"distance"} == set(result["baselines"]["pixels"]["scores"])
    assert result["baselines"]["pixels"]["details"]["width"] == 3 * 16 * 16
    assert any("last four layers left out" in note for note in result["notes"])  # a model of two blocks
    assert cli.main(["eval", "count", *arguments, "--preset", "paper-clevr-count", "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    recipe = result["settings"]["recipe"]
    assert (recipe["lr"], recipe["epochs"], recipe["schedule"], recipe["nesterov"]) == ([0.01], 2, "cosine", True)
    assert "not the protocol of paper-clevr-count: epochs 2 instead of 50" in result["notes"]
    assert list(result["details"]["count sweep"]) == [f"sgd lr 0.01 wd 0.0005 last {head}" for head in ("linear", "bn")]
    assert result["published"]["all"]["huge/14"] == 86.7 and result["published"]["value"] is None


class Position(nn.Module):
    """An encoder whose token says which columns of the image are bright."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2))[:, None]


def test_scenes_are_seen_whole_and_mirrored_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scene has a bright object at the left or the right border, which a central square of 480 x 320 would cut off."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 12)):
        folder, listed = tmp_path / "CLEVR_v1.0" / "images" / part, []
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 40, (320, 480, 3), dtype=np.uint8)
            pixels[:, (slice(0, 60), slice(420, 480))[i % 2]] = 250
            Image.fromarray(pixels).save(folder / f"{i}.png")
            listed.append({"image_filename": f"{i}.png", "objects": [{"pixel_coords": [0, 0, 9]}] * (3 + i % 2)})
        (tmp_path / "CLEVR_v1.0" / "scenes").mkdir(exist_ok=True)
        (tmp_path / "CLEVR_v1.0" / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": listed}))
    images = tmp_path / "CLEVR_v1.0" / "images"
    pair = scenes.read_scenes("count", str(images / "train"), str(images / "val"))
    seen = {}
    for frame in ("whole", "crop"):
        settings = Settings(size=16, mean=HALF, std=HALF, tasks=("count",), solvers=("sgd",), frame=frame, layers="last")
        session = Session(Position(), pair, settings)
        seen[frame], mirrored = session.pooled("test"), session.pooled("test", mirrored=True)
        torch.testing.assert_close(mirrored, seen[frame].flip(1))
    assert bool((seen["whole"][::2, 0] > seen["whole"][1::2, 0] + 0.5).all())  # left objects in the first column
    assert float((seen["crop"][::2, 0] - seen["crop"][1::2, 0]).abs().max()) < 0.1  # the crop has lost them
    epochs: list[Tensor] = []
    train = sweep.train

    def spy(features: Any, *rest: Any, **options: Any) -> sweep.Trained:
        return train(lambda epoch: epochs.append(features(epoch)) or features(epoch), *rest, **options)

    monkeypatch.setattr(sweep, "train", spy)
    recipe = sweep.Recipe(epochs=3)
    evaluate_pair(Position(), pair, replace(settings, frame="whole", recipe=recipe))
    session = Session(Position(), pair, replace(settings, frame="whole"))
    original, mirrored = session.pooled("train"), session.pooled("train", mirrored=True)
    flipped = torch.stack([(features == mirrored).all(dim=1) for features in epochs])  # [epochs, images]
    for features, row in zip(epochs, flipped, strict=True):
        assert torch.equal(features, torch.where(row[:, None], mirrored, original))  # as many rows as images
    assert 0.3 < float(flipped.double().mean()) < 0.7 and len(flipped.unique(dim=0)) == 3


# --- sharing among ranks, augmentation


@pytest.mark.parametrize(("total", "size"), [(0, 2), (1, 4), (10, 3), (1500, 7)])
def test_every_image_is_one_ranks(total: int, size: int) -> None:
    shares = [World(rank, rank, size).share(total) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="has 0 results for its 2 of 2 images"):
        gather_rows(torch.zeros(0, 3), 2, World())


def test_random_crops_are_functions_of_seed_and_image(tmp_path: Path) -> None:
    write_images(tmp_path, {"ant": 4, "bee": 4}, size=24)
    paths = read_pair(str(tmp_path), str(tmp_path)).train.paths

    def crops(positions: list[int], batch: int, seed: int = 0) -> np.ndarray:
        return np.concatenate(list(crop_batches(paths, positions, 16, batch, 2, seed=seed, scale=(0.3, 1.0))))

    whole = crops(list(range(8)), 3)
    assert whole.shape == (8, 16, 16, 3) and whole.dtype == np.uint8
    assert np.array_equal(whole[[5, 1]], crops([5, 1], 8))
    assert not np.array_equal(whole, crops(list(range(8)), 3, seed=1))
    assert not np.array_equal(whole, np.concatenate(list(batches(paths, 16, 8, 1))))


def test_augmented_and_held_out_sweeps(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 20, "cow": 20})
    write_images(tmp_path / "test", {"ant": 6, "cow": 6})
    from ijepa_ds.evals.sweep import Recipe

    for change in ({"augment": True}, {"select": "holdout"}, {"augment": True, "select": "holdout"}):
        settings = Settings(
            size=16, mean=HALF, std=HALF, tasks=("linear",), solvers=("sgd",), recipe=Recipe(epochs=20, lr=(1.0,)), **change
        )
        found = evaluate_folder(Colours(), str(tmp_path / "train"), str(tmp_path / "test"), settings)
        assert found["scores"]["linear SGD"] == 100 and len(found["details"]["sweep"]) == 4
    assert any("a tenth of the training images" in note for note in found["notes"])


def test_attentive_heads_are_chosen_on_held_out_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "train", {"ant": 20, "cow": 20})
    write_images(tmp_path / "test", {"ant": 6, "cow": 6})
    seen: list[tuple[int, int]] = []
    evaluate = attentive.evaluate

    def spy(train: attentive.Batches, labels: Tensor, *rest: Any, **options: Any) -> dict:
        rows = torch.cat(list(train(torch.arange(len(labels)))))
        apart = torch.cat(list(options["choose_batches"](torch.arange(len(options["choose_labels"])))))
        assert not bool((rows[:, None] == apart[None]).flatten(2).all(dim=2).any())  # no image is in both
        seen.append((len(rows), len(apart)))
        scores = evaluate(train, labels, *rest, **options)
        best = max(scores["test"], key=lambda name: scores["test"][name])
        return {"test": scores["test"], "choose": {name: float(name != best) for name in scores["test"]}}

    monkeypatch.setattr(attentive, "evaluate", spy)
    recipe = attentive.Recipe(lr=(0.05, 1e-9), weight_decay=(0.0,), epochs=8, batch_size=8)
    settings = Settings(size=16, mean=HALF, std=HALF, tasks=("attentive",), attentive_recipe=recipe, select="holdout")
    found = evaluate_folder(Colours(), str(tmp_path / "train"), str(tmp_path / "test"), settings)
    assert seen == [(36, 4)]
    assert found["scores"]["attentive"] == found["details"]["attentive"]["lr 1e-09 wd 0"]  # the choice counts, not the test
    assert any("a tenth of the training images" in note for note in found["notes"])


def test_features_that_no_head_uses_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "train", {"ant": 8, "cow": 8})
    computed: list[str] = []
    pooled = Session.pooled
    monkeypatch.setattr(Session, "pooled", lambda self, part, *rest: computed.append(part) or pooled(self, part, *rest))
    source, recipe = str(tmp_path / "train"), sweep.Recipe(epochs=1, lr=(1.0,))
    for options, parts in (
        ({"tasks": ("linear",), "solvers": ("lars",), "augment": True}, {"test"}),
        ({"tasks": ("linear",), "solvers": ("lars",), "augment": True, "select": "holdout"}, {"train", "test"}),
        ({"tasks": ("rank",), "views": 2}, {"test"}),
    ):
        computed.clear()
        evaluate_folder(Colours(), source, source, Settings(size=16, mean=HALF, std=HALF, recipe=recipe, **options))
        assert set(computed) == parts, options
