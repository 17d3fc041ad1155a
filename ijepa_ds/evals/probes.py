"""Heads on average-pooled features that are computed once: k-NN, logistic regression, and the sweep of SGD and LARS heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.data.crops import flips
from ijepa_ds.evals import knn, linear, neighbours, sweep
from ijepa_ds.evals.dense.tokens import of_patches
from ijepa_ds.evals.session import CROP_SCALE, Session
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.shared import Scores, both_sets, chosen_on, held_out, one_layer
from ijepa_ds.evals.tuned import attentive_heads


def k_nearest(session: Session) -> Scores:
    """Score k-NN for every k and temperature."""
    settings, found = session.settings, Scores()
    sets = both_sets(session, one_layer(session))
    n = len(session.pair.train.labels)
    k = [count for count in settings.k if count <= n]
    if not k:
        raise ValueError(f"k: {list(settings.k)} are all above the {n} training images")
    if len(k) < len(settings.k):
        left_out = ", ".join(str(count) for count in settings.k if count not in k)
        found.notes.append(f"k = {left_out} left out: above the {n} training images")
    if sets is None:
        return found
    placed = [part.to(settings.device) for part in sets]
    for temperature in settings.temperatures:
        scores = knn.evaluate(*placed, k=k, temperature=temperature)
        several = f" T={temperature:g}" if len(settings.temperatures) > 1 else ""
        found.scores |= {name + several: score for name, score in scores.items()}
    found.details["width"] = sets[0].shape[1]
    found.details["neighbours"] = neighbours.nearest(sets[0], sets[2], session.pair)
    return found


def swept_by(settings: Settings) -> list[str]:
    """The solvers whose heads are swept."""
    return [solver for solver in settings.solvers if solver in sweep.OPTIMIZERS]


def linear_heads(session: Session) -> Scores:
    """Logistic regression by L-BFGS, and the best head of each swept solver."""
    settings, found = session.settings, Scores()
    if "lbfgs" in settings.solvers:
        sets = both_sets(session, one_layer(session))
        if sets is not None:
            detail = linear.evaluate(*sets, c=settings.c, max_iterations=settings.max_iterations)
            found.details |= {"linear": detail, "width": sets[0].shape[1]}
            found.scores["linear"] = detail["top1"]
            if not detail["converged"]:
                found.notes.append(f"linear: not converged after {settings.max_iterations} iterations, the score is not final")
    if swept_by(settings):
        accuracies = _run_sweep(session, found, mirrored=False)
        for solver in swept_by(settings) if accuracies else ():
            head = sweep.best(accuracies["choose"], solver)
            found.scores[f"linear {solver.upper()}"] = accuracies["test"][head]
    return found


def on_scenes(session: Session, name: str) -> Scores:
    """The linear probe on scenes: each epoch takes every image as it is or mirrored, at random.

    With the pool `attentive`, attentive heads see both each epoch.
    """
    settings, found = session.settings, Scores()
    if settings.pool == "attentive":
        session.encoder = of_patches(session.encoder)
        found = attentive_heads(session, mirrored=True)
        return Scores({name: found.scores["attentive"]}, {f"{name} attentive": found.details["attentive"]}, found.notes)
    recipe = replace(settings.recipe, optimizers=swept_by(settings) or settings.recipe.optimizers)
    session.settings = replace(settings, recipe=recipe, solvers=tuple(recipe.optimizers))
    accuracies = _run_sweep(session, found, mirrored=True)
    session.settings = settings
    if accuracies:
        head = max(accuracies["choose"], key=lambda head: accuracies["choose"][head])
        found.scores[name] = accuracies["test"][head]
        found.details = {f"{name} {key}" if key == "sweep" else key: value for key, value in found.details.items()}
    return found


def _run_sweep(session: Session, found: Scores, mirrored: bool) -> dict[str, dict[sweep.Head, float]]:
    """Train the sweep; accuracies of all heads on the test images and on those to choose on; empty on other ranks."""
    settings = session.settings
    layers = [settings.layers] if settings.layers else list(settings.recipe.layers)
    if "last4" in layers and session.layers < 4:
        if layers == ["last4"]:
            raise ValueError(f"--layers last4: this encoder gives {session.layers} layers")
        layers.remove("last4")
        found.notes.append(f"the last four layers left out: this encoder gives {session.layers}")
    recipe = replace(settings.recipe, layers=layers, optimizers=swept_by(settings), seed=settings.seed)
    depth = 4 if "last4" in layers else 1
    labels = session.pair.train.labels
    holdout = held_out(len(labels), settings.seed) if settings.select == "holdout" else None
    train = session.pooled("train", depth) if not settings.augment or holdout is not None else None
    mirror = session.pooled("train", depth, True) if mirrored else None
    test = session.pooled("test", depth)

    def of_epoch(epoch: int) -> Tensor:
        features = train
        if settings.augment:
            features = session.cropped("train", range(len(labels)), epoch, depth, CROP_SCALE)
        assert features is not None
        if mirror is not None:
            flipped = flips(np.arange(len(labels), dtype=np.int64) + epoch * len(labels), settings.seed)
            features = torch.where(torch.from_numpy(flipped)[:, None], mirror, features)
        return features if holdout is None else features[~holdout]

    if test is None:
        for epoch in range(recipe.epochs if settings.augment else 0):
            session.cropped("train", range(len(labels)), epoch, depth, CROP_SCALE)
        return {}
    width = test.shape[1] // depth
    kept = labels if holdout is None else labels[~holdout]
    trained = sweep.train(
        of_epoch, kept, width, recipe, device=settings.device, progress=f"{session.label}, {len(sweep.all_heads(recipe))} heads"
    )
    accuracies = {"test": trained.accuracies(test, session.pair.test.labels)}
    accuracies["choose"] = accuracies["test"]
    if holdout is not None:
        assert train is not None
        accuracies["choose"] = trained.accuracies(train[holdout], labels[holdout])
    found.notes.append(chosen_on(f"the best of {len(accuracies['test'])} heads", holdout))
    found.details["sweep"] = {str(head): score for head, score in accuracies["test"].items()}
    found.details["width"] = width
    return accuracies
