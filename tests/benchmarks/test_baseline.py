"""What the benchmarks compare with is the method: the plain implementation reproduces recorded runs of the published code."""

import json
from collections import Counter

import pytest
import torch
from torch import Tensor

from benchmarks.baseline import Method, Shape, Training
from benchmarks.baseline_data import MaskCollator
from tests.oracle import DATA, assert_close


def method_of(c: dict, tensors: dict[str, Tensor]) -> Method:
    """The plain networks with the oracle's first weights."""
    shape = Shape(
        grid=c["image_size"] // c["patch_size"],
        patch_size=c["patch_size"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_hidden=int(c["embed_dim"] * c["mlp_ratio"]),
        predictor_width=c["predictor_embed_dim"],
        predictor_depth=c["predictor_depth"],
    )
    method = Method(shape)
    method.load_state_dict({key[5:].replace("/", "."): value for key, value in tensors.items() if key.startswith("init/")})
    return method


def masks_of(tensors: dict[str, Tensor], step: int) -> tuple[list[Tensor], list[Tensor]]:
    """Contexts and targets of a step, lists of [B, K]."""
    return list(tensors[f"step{step}/context_masks"]), list(tensors[f"step{step}/target_masks"])


def test_outputs_loss_and_gradients(oracle: tuple[dict, dict[str, Tensor]]) -> None:
    figures, tensors = oracle
    method, (contexts, targets) = method_of(figures["config"], tensors), masks_of(tensors, 0)
    images = tensors["step0/images"]
    assert_close(method.targets(images, contexts, targets), tensors["step0/targets"], 1e-5, "targets")
    encoded = method.encoder(images, contexts)
    assert_close(method.predictor(encoded, contexts, targets), tensors["step0/predictions"], 1e-5, "predictions")
    loss = method(images, contexts, targets)
    assert float(loss.detach()) == pytest.approx(figures["steps"][0]["loss"], rel=1e-5)
    loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert_close(parameter.grad, tensors["step0/grad/" + name.replace(".", "/", 1)], 1e-5, f"gradient of {name}")


def test_weights_after_training(oracle: tuple[dict, dict[str, Tensor]]) -> None:
    figures, tensors = oracle
    method = method_of(figures["config"], tensors)
    training = Training(method)
    for step, row in enumerate(figures["steps"]):
        lr, weight_decay, momentum = figures["schedule"][step]
        loss = training.step(tensors[f"step{step}/images"], masks_of(tensors, step), lr, weight_decay, momentum)
        assert loss == pytest.approx(row["loss"], rel=1e-5), f"step {step}"
    for name, parameter in method.named_parameters():
        assert_close(parameter.detach(), tensors["final/" + name.replace(".", "/", 1)], 1e-4, name)


def test_the_collator_draws_the_published_masks() -> None:
    row = json.loads((DATA / "mask-statistics.json").read_text())["cifar-32-4"]
    grid, batch, count = row["image_size"] // row["patch_size"], row["batch"], 40
    collator = MaskCollator(grid, min_keep=row["min_keep"])
    collator.generator.manual_seed(0)
    lengths: Counter[int] = Counter()
    kept = []
    for _ in range(count):
        contexts, targets = collator.masks(batch)
        lengths[targets[0].shape[1]] += 1
        kept.append(contexts[0].shape[1])
        told = torch.zeros(batch, grid * grid, dtype=torch.bool)
        for target in targets:
            told.scatter_(1, target, True)
        assert not told.gather(1, contexts[0]).any()  # no overlap: never relaxed at these settings
    assert set(lengths) <= {int(key) for key in row["target_tokens_per_block"]}
    mean, spread = float(torch.tensor(kept).float().mean()), float(torch.tensor(kept).float().std())
    wanted = row["context_tokens_after_truncation_to_batch_minimum_mean"]
    assert abs(mean - wanted) < 4 * spread * (1 / count + 1 / row["batches"]) ** 0.5
