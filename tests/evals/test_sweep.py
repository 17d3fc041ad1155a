"""The batched sweep trains what one head at a time would: checked against torch's SGD and scikit-learn."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from ijepa_ds.evals import sweep
from ijepa_ds.evals.sweep import Head, Recipe, all_heads
from tests.evals_cases import clusters

ONE = Recipe(optimizers=("sgd",), lr=(0.05,), weight_decay=(0.0005,), layers=("last",), heads=("linear",))


def problem(num: int = 320, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of four layers, [n, 4 * width]."""
    features, labels = clusters(num, classes=4, width=4 * width, seed=seed)
    return features.float(), labels


@torch.no_grad()
def trust(layer: nn.Linear, decay: float) -> None:
    """LARS as published (You et al. 2017), in place on the gradient, on top of torch's SGD."""
    weight, gradient = layer.weight.norm(), layer.weight.grad.norm()
    layer.weight.grad = (layer.weight.grad + decay * layer.weight) * 0.001 * weight / (gradient + decay * weight)


@pytest.mark.parametrize(("schedule", "nesterov", "decay_biases"), [("step", True, False), ("cosine", False, True)])
@pytest.mark.parametrize(
    "head",
    [
        Head("sgd", 0.05, 0.0005, "last", "linear"),
        Head("sgd", 0.01, 0.0, "last4", "bn"),
        Head("lars", 0.25, 0.0005, "last4", "linear"),
        Head("lars", 1.0, 0.0, "last", "bn"),
    ],
)
def test_each_head_is_what_torch_trains_alone(head: Head, schedule: str, nesterov: bool, decay_biases: bool) -> None:
    x, y = problem()
    recipe = Recipe(
        epochs=4, batch_size=64, decay_every=2, schedule=schedule, seed=2, nesterov=nesterov, decay_biases=decay_biases
    )
    trained = sweep.train(lambda epoch: x, y, 6, recipe)
    group = next(group for group in trained.groups if head in group.members)
    place = group.members.index(head)
    got, bias = group.weight[place], group.bias[place]

    width = 24 if head.layers == "last4" else 6
    model = nn.Linear(width, 4)
    with torch.no_grad():
        model.weight.copy_(0.01 * torch.randn(4, width, generator=torch.Generator().manual_seed(2)))
        model.bias.zero_()
    norm = nn.BatchNorm1d(width) if head.head == "bn" else nn.Identity()
    decay = head.weight_decay if head.optimizer == "sgd" else 0.0
    groups = [{"params": [model.weight], "weight_decay": decay}, {"params": list(norm.parameters()), "weight_decay": 0.0}]
    groups.append({"params": [model.bias], "weight_decay": head.weight_decay if decay_biases else 0.0})
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=head.lr * 64 / 256, momentum=0.9, nesterov=nesterov)
    order = torch.Generator().manual_seed(2)
    for epoch in range(4):
        for chosen in torch.randperm(320, generator=order).split(64):
            factor = 0.1 if epoch >= 2 else 1.0
            if schedule == "cosine":
                factor = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * epoch / 4))  # once an epoch, to a hundredth
            for group_ in optimizer.param_groups:
                group_["lr"] = head.lr * 64 / 256 * factor
            loss = F.cross_entropy(model(norm(x[chosen, -width:])), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            if head.optimizer == "lars":
                trust(model, head.weight_decay)
            optimizer.step()
    # rounding: 1e-6; a rate, decay or trust ratio that differs: above 1e-4
    torch.testing.assert_close(got, model.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bias, model.bias.detach(), rtol=1e-4, atol=1e-6)
    if head.head == "bn":
        torch.testing.assert_close(group.scale[place], norm.weight.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(group.shift[place], norm.bias.detach(), rtol=1e-4, atol=1e-6)
    expected = 100 * (model(norm.eval()(x[:, -width:])).argmax(1) == y).double().mean()
    assert trained.accuracies(x, y)[head] == pytest.approx(float(expected))


def test_a_converged_head_is_scikit_learns() -> None:
    """Mean cross-entropy + wd/2 |W|^2 is LogisticRegression's problem with C = 1 / (n wd)."""
    (x, y), (test, wanted) = problem(400, seed=0), problem(300, seed=1)
    x, test = x[:, -6:], test[:, -6:]
    recipe = replace(ONE, lr=(0.5,), weight_decay=(0.01,), epochs=800, batch_size=100, schedule="cosine")
    trained = sweep.train(lambda epoch: x, y, 6, recipe)
    theirs = LogisticRegression(C=1 / (400 * 0.01), max_iter=5000, tol=1e-8).fit(x.double().numpy(), y.numpy())
    ours = trained.groups[0].logits(test)[:, 0].softmax(1)
    torch.testing.assert_close(ours.double(), torch.from_numpy(theirs.predict_proba(test.double().numpy())), rtol=0, atol=2e-3)
    (score,) = trained.accuracies(test, wanted).values()
    assert score == pytest.approx(100 * theirs.score(test.numpy(), wanted.numpy()), abs=0.34)  # one image of 300


def test_the_papers_sweep_has_all_combinations() -> None:
    recipe = Recipe(lr=(0.01, 0.05, 0.001))
    heads = all_heads(recipe)
    assert len(set(heads)) == len(heads) == 2 * 3 * 2 * 2 * 2
    assert len({str(head) for head in heads}) == len(heads)
    assert [recipe.factor(epoch) for epoch in (0, 14.9, 15, 30, 45)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    cosine = replace(recipe, schedule="cosine")
    assert cosine.factor(25.9) == pytest.approx(0.505) and cosine.factor(50) == pytest.approx(0.01)


def test_features_of_each_epoch_are_used() -> None:
    x, y = problem()
    seen = []

    def features(epoch: int) -> torch.Tensor:
        seen.append(epoch)
        return x

    sweep.train(features, y, 6, replace(ONE, epochs=3))
    assert seen == [0, 1, 2]


def test_a_diverged_head_scores_nothing() -> None:
    x, y = problem()
    recipe = replace(ONE, lr=(0.05, 1e30), epochs=8)
    scores = sweep.train(lambda epoch: x * 1e5, y, 6, recipe).accuracies(x * 1e5, y)
    assert [scores[head] == 0 for head in all_heads(recipe)] == [False, True]
    assert all(math.isfinite(score) for score in scores.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizers": ("adam",)}, "optimizers"),
        ({"lr": (0.0,)}, "lr"),
        ({"weight_decay": ()}, "weight decay"),
        ({"epochs": 0}, "epochs"),
        ({"layers": ("first",)}, "layers"),
        ({"schedule": "linear"}, "schedule"),
    ],
)
def test_recipes_that_cannot_be(change: dict, message: str) -> None:
    x, y = problem(16)
    with pytest.raises(ValueError, match=message):
        sweep.train(lambda epoch: x, y, 6, replace(ONE, **change))


def test_a_single_class_is_refused() -> None:
    x, y = problem(16)
    with pytest.raises(ValueError, match="single class"):
        sweep.train(lambda epoch: x, torch.zeros_like(y), 6, ONE)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 9])
def test_few_images_and_batches_of_one_train_a_batch_norm(n: int) -> None:
    x, y = problem(n)
    y = torch.arange(n) % 2
    for size in (1, 64):
        recipe = replace(ONE, heads=("bn",), batch_size=size, epochs=2)
        (found,) = sweep.train(lambda epoch: x, y, 6, recipe).accuracies(x, y).values()
        assert 0 <= found <= 100
