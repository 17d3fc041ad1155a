"""What ZeRO-3 keeps gathered: the trace of DeepSpeed 0.19's coordinator, and its prefetching (docs/plan.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ijepa_ds.model.work import Parameter, Work
from ijepa_ds.plan.spread import Spread


@dataclass(frozen=True)
class Gathering:
    """What stage 3 gathers in one micro-batch.

    Attributes:
        peak: Most elements of gathered weights and receiving buffers.
        forward_calls: Gathers in the forward passes of target and trained networks; prefetching joins them.
        backward_calls: Gathers in the backward pass.
        again: Elements of trained weights that are gathered a second time, for the backward pass.
    """

    peak: int
    forward_calls: int
    backward_calls: int
    again: int


@lru_cache(maxsize=1024)
def gathering_of(work: Work, spread: Spread) -> Gathering:
    """Follow DeepSpeed's coordinator through one micro-batch, parameter by parameter.

    Before a module runs, its missing parameters are gathered. Then parameters are gathered ahead, in the order of their use,
    until `stage3_prefetch_bucket_size` elements are under way or `stage3_max_live_parameters` are gathered. Parameters that
    are gathered already are skipped without counting, and not released before that use: so prefetching may run far ahead.
    After a module, its parameters are released, except those that are used again soon (`kept_elements`). A gather is copied
    out of its receiving buffer when its first parameter is used.
    """
    if spread.world == 1:
        return Gathering(0, 0, 0, 0)
    run = _Run(work, spread)
    for step in range(len(run.modules)):
        run.module(step)
    return Gathering(run.peak, run.calls["forward"], run.calls["backward"], run.again)


class _Run:
    """State of the coordinator in a micro-batch."""

    def __init__(self, work: Work, spread: Spread) -> None:
        self.modules = _passes(work, spread)
        self.peak, self.again, self.calls = 0, 0, {"forward": 0, "backward": 0}
        self._spread, self._kept = spread, _kept_names(work, spread)
        self._sizes = dict(parameter for _, parameters in self.modules for parameter in parameters)
        self._uses = [(step, name) for step, (_, parameters) in enumerate(self.modules) for name, _ in parameters]
        self._next = 0  # of the uses, that prefetching has not passed
        self._last_use = dict.fromkeys(self._sizes, -1)  # that was fetched for
        self._here: set[str] = set()
        self._under_way: list[list[str]] = []

    def module(self, step: int) -> None:
        """Gather, prefetch, run and release one module."""
        section, parameters = self.modules[step]
        names = [name for name, _ in parameters]
        self._gather(section, [name for name in names if not self._has(name)])
        for handle in [handle for handle in self._under_way if set(handle) & set(names)]:
            self._here.update(handle)
            self._note()  # the receiving buffer and its copies
            self._under_way.remove(handle)
        while self._next < len(self._uses) and self._uses[self._next][0] <= step:
            self._pass()
        self._gather(section, self._ahead())
        self._note()
        kept = self._kept if section != "backward" else set()
        self._here.difference_update(name for name in names if self._last_use[name] <= step + 1 and name not in kept)

    def _ahead(self) -> list[str]:
        found: list[str] = []
        budget = min(self._spread.live - self._held(), self._spread.prefetch)
        while self._next < len(self._uses) and self._numel(found) < budget:
            name = self._pass()
            if not self._has(name) and name not in found:
                found.append(name)
        return found

    def _pass(self) -> str:
        step, name = self._uses[self._next]
        self._last_use[name] = max(self._last_use[name], step)
        self._next += 1
        return name

    def _gather(self, section: str, names: list[str]) -> None:
        if names:
            self._under_way.append(names)
            self.calls[section] += 1
            self.again += self._numel(names) if self._next and section == "backward" else 0

    def _has(self, name: str) -> bool:
        return name in self._here or any(name in handle for handle in self._under_way)

    def _held(self) -> int:
        return self._numel(self._here) + sum(map(self._numel, self._under_way))

    def _note(self) -> None:
        self.peak = max(self.peak, self._held())

    def _numel(self, names: Iterable[str]) -> int:
        return sum(self._sizes[name] for name in names)


def _passes(work: Work, spread: Spread) -> list[tuple[str, list[tuple[str, int]]]]:
    """Modules in the order in which they run: section, and names and elements of their released parameters."""

    def of(part: str, prefix: str) -> list[list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for number, p in enumerate(work.parameters):
            if p.part == part and p.numel > spread.persist and (prefix != "target" or work.runs_in_target(p)):
                found.setdefault(p.module, []).append((f"{prefix}.{number}", p.numel))
        return [[], *found.values()]  # the network itself has no parameters, but prefetching starts when it is entered

    target, encoder, predictor = of("encoder", "target"), of("encoder", "encoder"), of("predictor", "predictor")
    trained = [*encoder, *predictor]
    forward = [("forward", module) for module in ([], *target, *trained)]
    return forward + [("backward", module) for module in ([], *reversed(trained))]  # []: the whole model is entered


def _kept_names(work: Work, spread: Spread) -> set[str]:
    """Names (as in `_passes`) of the parameters that `stage3_max_reuse_distance` keeps."""
    left = dict(zip(("target", "encoder", "predictor"), _kept_by_network(work, spread.reuse), strict=True))
    names = set()
    for prefix, part in (("target", "encoder"), ("encoder", "encoder"), ("predictor", "predictor")):
        for number, p in reversed(list(enumerate(work.parameters))):
            if p.part == part and left[prefix] > 0 and (prefix != "target" or work.runs_in_target(p)):
                left[prefix] -= p.numel
                names.add(f"{prefix}.{number}")
    return names


def persistent_elements(work: Work, spread: Spread, part: str | None = None) -> int:
    """Return the elements of parameters that are never released: up to `stage3_param_persistence_threshold` each."""
    if spread.stage < 3 or spread.world == 1:
        return 0
    return sum(p.numel for p in work.parameters if p.numel <= spread.persist and part in (None, p.part))


class Kept(NamedTuple):
    """Elements that stay gathered from the forward to the backward pass: of the target encoder, of trained networks."""

    target: int
    trained: int


def kept_elements(work: Work, spread: Spread) -> Kept:
    """Return the elements that stage 3 does not release after their forward pass.

    Example: an encoder of two modules E1 = 30 and E2 = 10 elements, a target encoder T1, T2 of the same sizes, and a
    predictor P1 = P2 = 5. DeepSpeed's trace of the forward pass is

        T T1 T2   E E1 E2   P P1 P2   model

    It lists a network once as a whole (T, E, P) and once by its modules. The last entry is the start of the backward
    pass, which enters the whole model: DeepSpeed takes it for the next use of every module, even of the target encoder,
    which has no backward pass. The reuse distance of a module is the number of elements traced up to that entry:

        P2: 0    P1: P2 = 5    E2: P + P1 + P2 = 20     E1: E2 + 20 = 30
        T2: E + E1 + E2 + P + P1 + P2 = 100             T1: T2 + 100 = 110

    A module stays gathered if its distance is less than `spread.reuse`, here 25. Buffers over time (## in use,
    == kept gathered, .. released):

        pass     forward              backward
        module   T1 T2 E1 E2 P1 P2    P2 P1 E2 E1
        T2       .. ## .. .. .. ..    .. .. .. ..    100 >= 25
        E1       .. .. ## .. .. ..    .. .. .. ##     30 >= 25: gathered twice
        E2       .. .. .. ## == ==    == == ## ..     20 < 25
        P1       .. .. .. .. ## ==    == ## .. ..      5 < 25
        P2       .. .. .. .. .. ##    ## .. .. ..      0 < 25

    The result is (target 0, trained E2 + P1 + P2 = 20). Blocks are leaf modules here, so the trace has no smaller parts.
    """
    target, encoder, predictor = _kept_by_network(work, spread.reuse)
    return Kept(target, encoder + predictor)


def _kept_by_network(work: Work, reuse: int) -> tuple[int, int, int]:
    """Return the elements kept of target encoder, encoder and predictor."""
    encoder, predictor = (_modules(p for p in work.parameters if p.part == part) for part in ("encoder", "predictor"))
    target = _modules(filter(work.runs_in_target, work.parameters))
    predictor_to_backward = 0
    encoder_to_backward = 2 * sum(predictor)
    target_to_backward = 2 * sum(encoder) + 2 * sum(predictor)
    return (
        _kept_of(target, target_to_backward, reuse),
        _kept_of(encoder, encoder_to_backward, reuse),
        _kept_of(predictor, predictor_to_backward, reuse),
    )


def _kept_of(modules: list[int], to_backward: int, reuse: int) -> int:
    """Return the elements of a network's modules with a reuse distance below `reuse`.

    Args:
        modules: Elements of each module, in forward order.
        to_backward: Elements traced between the network's last module and the start of the backward pass.
        reuse: Limit of the distance.
    """
    total, distance = 0, to_backward
    for numel in reversed(modules):
        if distance >= reuse:
            break
        total, distance = total + numel, distance + numel
    return total


def _modules(parameters: Iterable[Parameter]) -> list[int]:
    """Return the elements of each module of a network, in forward order."""
    sizes: dict[str, int] = {}
    for parameter in parameters:
        sizes[parameter.module] = sizes.get(parameter.module, 0) + parameter.numel
    return list(sizes.values())
