"""Attentive, linear and low-shot heads equal obvious rewritings in plain torch; recipes have the documented values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.evals import attentive, finetune, linear, lowshot, sweep
from ijepa_ds.evals.folders import Pair, batches, crop_batches, read_pair
from ijepa_ds.evals.settings import FEW, Settings
from ijepa_ds.evals.tasks import evaluate_pair

HALF = (0.5, 0.5, 0.5)


# --- the values


def test_recipes_have_the_documented_values() -> None:
    """Paper, appendix A.2: all labels, 1 % of the labels; attentive heads and the sweep as in docs/evaluate.md."""
    assert finetune.Recipe() == finetune.Recipe(
        lr=1e-4, weight_decay=0.05, layer_decay=0.75, epochs=50, batch_size=528, smoothing=0.1, mixup=0.8, cutmix=1.0,
        drop_path=0.25, rand_augment="rand-m9-mmax9-mstd0.5-inc1", crop_scale=0.08, seed=0,
    )  # fmt: skip
    assert FEW == finetune.Recipe(
        lr=3e-5, weight_decay=0.05, layer_decay=0.75, epochs=50, batch_size=512, smoothing=0.1, mixup=0.0, cutmix=0.0,
        drop_path=0.0, rand_augment="rand-m9-mmax9-mstd0.5-inc1", crop_scale=0.08, seed=0,
    )  # fmt: skip
    assert attentive.Recipe() == attentive.Recipe(
        lr=(3e-4, 1e-3, 3e-3), weight_decay=(0.01, 0.1), epochs=20, batch_size=256, head_width=64, smoothing=0.0, seed=0
    )
    assert sweep.Recipe() == sweep.Recipe(
        optimizers=("sgd", "lars"), lr=(0.001, 0.01, 0.05, 0.25, 1.0), weight_decay=(0.0005, 0.0), layers=("last", "last4"),
        heads=("linear", "bn"), epochs=50, batch_size=1024, schedule="step", decay_every=15, seed=0,
    )  # fmt: skip
    assert lowshot.C_PATH == pytest.approx([10 ** (-6 + 11 * i / 44) for i in range(45)])


# --- attentive


def pooled(probe: attentive.Probe, tokens: Tensor, heads: int) -> Tensor:
    """Logits [B, C] of one head: norm, attention of one learnt query, a residual MLP, a linear classifier."""
    pool, (b, n, d) = probe.pool, tokens.shape
    x = F.layer_norm(tokens, (d,), probe.norm.weight, probe.norm.bias)
    q = pool.q(pool.latent[0]).reshape(heads, 1, d // heads)
    k, v = pool.kv(x).reshape(b, n, 2, heads, d // heads).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    weights = (q @ k.transpose(2, 3) / math.sqrt(d // heads)).softmax(dim=-1)  # [B, heads, 1, N]
    x = pool.proj((weights @ v).reshape(b, d))
    x = x + pool.mlp.fc2(F.gelu(pool.mlp.fc1(F.layer_norm(x, (d,), pool.norm.weight, pool.norm.bias))))
    return x @ probe.head.weight.T + probe.head.bias


def fresh_probe(width: int, classes: int, recipe: attentive.Recipe) -> attentive.Probe:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return attentive.Probe(width, classes, recipe.head_width)


@pytest.mark.parametrize(
    "recipe",
    [
        attentive.Recipe(lr=(0.03, 0.01), weight_decay=(1.0, 0.0), epochs=5, batch_size=16, head_width=6, seed=3),
        attentive.Recipe(lr=(0.1,), weight_decay=(0.1,), epochs=2, batch_size=30, head_width=6, smoothing=0.2),
    ],
    ids=["four heads, 25 steps", "smoothing, 6 steps"],
)
def test_attentive_heads_are_the_rewriting(recipe: attentive.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[attentive.Probe] = []
    score = attentive._score
    monkeypatch.setattr(attentive, "_score", lambda probes, *rest: scored.extend(probes) or score(probes, *rest))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (170,), generator=generator)
    tokens = torch.randn(170, 5, 20, generator=generator) + 0.2 * F.one_hot(labels, 20)[:, None]
    train, test = (tokens[:80], labels[:80]), (tokens[80:], labels[80:])
    found = attentive.evaluate(
        lambda order: (train[0][rows] for rows in order.split(7)), train[1],  # streamed in other batches than those of updates
        lambda order: (test[0][rows] for rows in order.split(40)), test[1], 20, recipe,
    )["test"]  # fmt: skip
    settings = [(lr, decay) for lr in recipe.lr for decay in recipe.weight_decay]
    assert list(found) == [f"lr {lr:g} wd {decay:g}" for lr, decay in settings]
    factors = set()
    for probe, (lr, decay) in zip(scored, settings, strict=True):
        wanted = fresh_probe(20, 3, recipe)
        assert float(wanted.head.weight.detach().std()) == pytest.approx(0.01, rel=0.3) and not wanted.head.bias.any()
        optimizer = torch.optim.AdamW(wanted.parameters(), lr=lr, weight_decay=decay, betas=(0.9, 0.999), eps=1e-8)
        order, step, steps = torch.Generator().manual_seed(recipe.seed), 0, recipe.epochs * math.ceil(80 / recipe.batch_size)
        for _ in range(recipe.epochs):
            for chosen in torch.randperm(80, generator=order).split(recipe.batch_size):
                step += 1
                done = step / steps
                warm, fall = done / 0.05, 0.5 + 0.5 * math.cos(math.pi * (done - 0.05) / 0.95)
                optimizer.param_groups[0]["lr"] = lr * (warm if done < 0.05 else fall)
                target = (1 - recipe.smoothing) * F.one_hot(train[1][chosen], 3) + recipe.smoothing / 3
                loss = -(target * pooled(wanted, train[0][chosen], heads=2).log_softmax(dim=1)).sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in wanted.parameters()))
                for parameter in wanted.parameters():
                    parameter.grad *= min(1.0, 1.0 / norm)
                factors.add(min(1.0, 1.0 / norm))
                optimizer.step()
        ours, differences = dict(probe.named_parameters()), {}
        for name, parameter in wanted.named_parameters():
            # the bias of the keys, the first 20, has no gradient but rounding, which Adam enlarges
            difference = (ours[name] - parameter).detach().abs()[20 * (name == "pool.kv.bias") :]
            differences[name] = float(difference.max())
        name = max(differences, key=lambda name: differences[name])
        # rounding: up to 4e-5; a schedule, decay, clip, smoothing or order that differs: above 0.03
        assert differences[name] < 1e-3, f"{name} of lr {lr:g} wd {decay:g}: {differences[name]}"
        right = (pooled(wanted, test[0], heads=2).argmax(dim=1) == test[1]).double().mean()
        assert found[f"lr {lr:g} wd {decay:g}"] == pytest.approx(100 * float(right))
    assert min(factors) < 0.6 and max(factors) == 1.0  # some steps are clipped, others are not


# --- linear, low-shot


def blobs(num: int, seed: int, classes: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    """Overlapping classes; each feature has its own mean and scale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num)
    features = np.random.default_rng(9).standard_normal((classes, width))[labels] + 1.2 * rng.standard_normal((num, width))
    return torch.from_numpy(features * 10.0 ** np.arange(-2, width - 2) + 5.0), torch.from_numpy(labels)


def logistic(x: Tensor, y: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Weight and bias that minimise the sum of cross-entropies + |W|^2 / (2 C), in float64."""
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y, reduction="sum") + weight.square().sum() / (2 * c)
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def accuracy(x: Tensor, y: Tensor, fitted: tuple[Tensor, Tensor]) -> float:
    return 100 * float(((x @ fitted[0].T + fitted[1]).argmax(dim=1) == y).double().mean())


@pytest.mark.parametrize("c", [0.003, 1.0])
def test_linear_head_is_the_rewriting(c: float) -> None:
    (x, y), (test, wanted) = blobs(120, 0), blobs(1000, 1)
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False)
    fitted = logistic((x - mean) / std, y, c)
    found = linear.evaluate(x, y, test, wanted, c=c)
    # one of 1000 test images is 0.1; without standardisation, or with half of C: above 0.5
    assert found["top1"] == pytest.approx(accuracy((test - mean) / std, wanted, fitted), abs=0.101)
    assert found["train_top1"] == pytest.approx(accuracy((x - mean) / std, y, fitted), abs=1e-9)


def test_low_shot_head_is_the_rewriting() -> None:
    (x, y), (test, wanted), (other, labels) = blobs(40, 0), blobs(1000, 1), blobs(60, 3)
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False)
    path = (10.0, 0.001, 0.03, 0.3)
    fits = {c: logistic((x - mean) / std, y, c) for c in sorted(path)}
    chosen = max(fits, key=lambda c: accuracy((other - mean) / std, labels, fits[c]))
    scores = {c: accuracy((test - mean) / std, wanted, fitted) for c, fitted in fits.items()}
    found = lowshot.evaluate(x, y, test, wanted, choose_features=other, choose_labels=labels, c=path)
    assert chosen != max(scores, key=lambda c: scores[c]), "the test images must not choose the same C"
    assert found["c"] == chosen
    assert found["top1"] == pytest.approx(scores[chosen], abs=0.101)  # one of 1000 images; another C: above 1
    assert found["best_on_test"] == pytest.approx(max(scores.values()), abs=0.101)
    same = lowshot.evaluate(x, y, x, y, c=(1e9, 1e8))  # equal accuracies: the stronger penalty
    assert same["c"] == 1e8


def test_low_shot_head_of_msn_is_the_rewriting() -> None:
    """Each image's features minus their mean, of length 1; no bias; l2 / (2 n) |W|^2 on the mean loss (`logistic_eval.py`)."""
    (x, y), (test, wanted) = blobs(60, 0), blobs(1000, 1)
    x, test = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)).double() + x / x.std(0), test / x.std(0)
    l2 = 0.0025

    def prepared(features: Tensor) -> Tensor:
        features = features - features.mean(dim=1, keepdim=True)
        return features / features.norm(dim=1, keepdim=True)

    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=4000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(prepared(x) @ weight.T, y) + l2 / (2 * len(x)) * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    right = 100 * float(((prepared(test) @ weight.T).argmax(dim=1) == wanted).double().mean())
    found = lowshot.evaluate(x, y, test, wanted, c=(1 / l2,), rows=True, max_iterations=5000)
    assert found["top1"] == pytest.approx(right, abs=0.21)  # two images of 1000
    plain = lowshot.evaluate(x, y, test, wanted, c=(1 / l2,), max_iterations=5000)
    assert abs(plain["top1"] - right) > 1, "standardised columns and a bias must give another score"


# --- from settings to the heads


class Pixels(nn.Module):
    """An encoder. Its tokens are the mean colours of 8 x 8 patches."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """12 training and 6 test images of two classes, larger than the evaluations' 16 pixels."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name in ("ant", "bee"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
                picture.save(folder / part / name / f"{number}.png")
    return read_pair(str(folder / "train"), str(folder / "test"))


def tokens_of(pixels: np.ndarray) -> Tensor:
    """uint8 [n, 16, 16, 3] -> tokens [n, 4, 3]."""
    normalised = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 / 0.5 - 1
    return normalised.unflatten(3, (2, 8)).unflatten(2, (2, 8)).mean(dim=(3, 5)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("augment", [False, True])
def test_sweep_sees_new_crops_each_epoch_only_if_augmented(augment: bool, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    train = sweep.train

    def spy(features: Callable[[int], Tensor], *rest: Any, **options: Any) -> sweep.Trained:
        def recorded(epoch: int) -> Tensor:
            seen.append(features(epoch))
            return seen[-1]

        return train(recorded, *rest, **options)

    monkeypatch.setattr(sweep, "train", spy)
    recipe = sweep.Recipe(epochs=3, lr=(1.0,), layers=("last",))
    settings = Settings(size=16, mean=HALF, std=HALF, tasks=("linear",), solvers=("sgd",), recipe=recipe, augment=augment)
    evaluate_pair(Pixels(), pair, settings)
    assert len(seen) == 3
    for epoch, features in enumerate(seen):
        if augment:
            options = {"size": 16, "batch_size": 12, "threads": 1, "seed": epoch, "scale": (0.08, 1.0)}
            (pixels,) = crop_batches(pair.train.paths, range(12), **options)
        else:
            (pixels,) = batches(pair.train.paths, 16, 12, threads=1)
        # rounding: 1e-7; other crops: above 0.1
        torch.testing.assert_close(features, tokens_of(pixels).mean(dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("token_gib", [2.0, 0.0])
def test_attentive_task_trains_on_all_tokens(token_gib: float, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the settings' recipe and seed, from tokens in memory or computed in each epoch."""
    recipes: list[attentive.Recipe] = []
    evaluate = attentive.evaluate
    monkeypatch.setattr(
        attentive, "evaluate", lambda *given, **options: recipes.append(given[5]) or evaluate(*given, **options)
    )
    recipe = attentive.Recipe(lr=(0.05, 1e-6), weight_decay=(0.1,), epochs=4, batch_size=5)
    options = {"attentive_recipe": recipe, "batch_size": 8, "seed": 7, "token_gib": token_gib}
    found = evaluate_pair(Pixels(), pair, Settings(size=16, mean=HALF, std=HALF, tasks=("attentive",), **options))
    train, test = (tokens_of(next(batches(part.paths, 16, 12, threads=1))) for part in (pair.train, pair.test))
    wanted = attentive.evaluate(
        lambda order: (train[rows] for rows in order.split(5)), pair.train.labels,
        lambda order: (test[rows] for rows in order.split(5)), pair.test.labels, 3, replace(recipe, seed=7),
    )["test"]  # fmt: skip
    assert recipes[0] == replace(recipe, seed=7)
    assert found["details"]["attentive"] == wanted and found["scores"] == {"attentive": max(wanted.values())}


def test_fine_tuning_uses_the_recipe_of_its_labels(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """All labels: mixing and drop path; few labels: none. Low-shot's penalty, l2 / (2 n) on the mean loss, is C = 1 / l2."""
    calls: list[tuple[Any, ...]] = []

    def record(encoder: nn.Module, paths: Any, labels: Tensor, *rest: Any, recipe: finetune.Recipe, **options: Any) -> dict:
        calls.append((list(paths), labels.tolist(), recipe))
        return {"top1": 50.0, "train_loss": 0.0}

    monkeypatch.setattr(finetune, "evaluate", record)
    options = {"per_class": 2, "draws": 1, "tune_few": True, "l2": 0.0025, "seed": 5, "threads": 1}
    settings = Settings(size=16, mean=HALF, std=HALF, tasks=("finetune", "lowshot"), **options)
    found = evaluate_pair(Pixels(), pair, settings)
    few = lowshot.draw_per_class(pair.train.labels, 2, seed=5).tolist()
    assert calls == [
        (list(pair.train.paths), pair.train.labels.tolist(), replace(finetune.Recipe(), seed=5)),
        ([pair.train.paths[i] for i in few], [0, 0, 1, 1], replace(FEW, seed=5)),
    ]
    assert found["scores"]["fine-tuned"] == found["scores"]["low-shot fine-tuned"] == 50.0
    assert found["details"]["low-shot 0"]["c"] == pytest.approx(400)
