"""Which of a bundle's plans Triton's tensorrt backend loads for a component.

`parure build` makes one plan per batch range, and a Triton model loads one plan. A server has to answer a lone
request as well as a full batch, so only plans that begin at batch 1 can be served; of those it is the widest, or
with `max_batch` the narrowest that still takes such a batch: `max_batch` 1 serves the static plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parure.bundle import Bundle
from parure.engine import ENGINES, EngineRecord, engine_folder, open_record, plans, verify_plan
from parure.errors import InputError

FLAVOR = "tensorrt"


@dataclass(frozen=True)
class ServedPlan:
    """A verified plan, and the name that it has in the model repository."""

    path: Path
    record: EngineRecord

    @property
    def name(self) -> str:
        return f"{self.path.stem}.{self.record.target}{self.path.suffix}"

    @property
    def capability(self) -> str:
        """As Triton writes it: 8.0. Empty for a portable plan, which Triton takes where it finds no other."""
        return ".".join(map(str, self.record.compute_capability or ()))


def chosen_targets(bundle: Bundle, asked: Sequence[str]) -> tuple[str, ...]:
    """The targets whose plans are served: those `asked` for, else the only one that there is."""
    found = sorted({path.parent.name.removesuffix(f"-{FLAVOR}") for path in plans(bundle.root) if _served(path)})
    if not found:
        others = sorted({path.parent.name for path in plans(bundle.root)})
        raise InputError(
            f"bundle {bundle.root} has no plans of flavor {FLAVOR}, which Triton's tensorrt backend needs"
            + (f" (it has {', '.join(others)}, which that backend cannot load)" if others else "")
            + f"; run `parure build {bundle.root} --flavor {FLAVOR} --target local --profile 1:4:8` on the GPU, or use "
            "--backend onnxruntime"
        )
    if unknown := [target for target in asked if target not in found]:
        raise InputError(f"the bundle has no plans for target {unknown[0]!r}; expected one of {', '.join(found)}")
    if not asked and len(found) > 1:
        raise InputError(f"the bundle has plans for {', '.join(found)}; say with --target which of them are served")
    return tuple(dict.fromkeys(asked)) or (found[0],)


def served_plans(
    bundle: Bundle, component: str, targets: Sequence[str], max_batch: int | None
) -> tuple[ServedPlan, ...]:
    """One verified plan of `component` per target, all of one batch range and of different compute capabilities.

    Raises `InputError` where a target has no plan that can be served, or two targets cannot be told apart.
    """
    chosen = tuple(_choose(bundle, component, target, max_batch) for target in targets)
    capabilities = [plan.capability for plan in chosen]
    if len(set(capabilities)) < len(capabilities):
        raise InputError(
            f"targets {', '.join(targets)} share a compute capability "
            f"({', '.join(sorted({name or 'portable' for name in capabilities}))}), by "
            "which Triton tells plans apart; name one of them"
        )
    if max_batch is None and len({plan.record.batches.max for plan in chosen}) > 1:
        ranges = ", ".join(f"{plan.record.target} 1 to {plan.record.batches.max}" for plan in chosen)
        raise InputError(
            f"{component}: the plans take different batches ({ranges}), and a model has one largest batch; "
            "build the same --profile for every target, or name one with --max-batch"
        )
    return chosen


def _served(path: Path) -> bool:
    return path.parent.name.endswith(f"-{FLAVOR}")


def _choose(bundle: Bundle, component: str, target: str, max_batch: int | None) -> ServedPlan:
    folder = engine_folder(bundle.root, target, FLAVOR)
    records = {path: open_record(path) for path in plans(bundle.root) if path.parent == folder}
    own = {path: record for path, record in records.items() if record.component == component}
    wanted = max_batch or 1
    fitting = {p: r for p, r in own.items() if r.batches.min == 1 and r.batches.max >= wanted and not r.stripped}
    if not fitting:
        raise InputError(_nothing_fits(component, target, own, wanted))
    widest = max if max_batch is None else min
    path = widest(fitting, key=lambda p: (fitting[p].batches.max, fitting[p].batches.opt))
    return ServedPlan(path, verify_plan(path, bundle))


def _nothing_fits(component: str, target: str, own: dict[Path, EngineRecord], wanted: int) -> str:
    there = ", ".join(
        f"{path.name} ({record.batches.min} to {record.batches.max}{', stripped' if record.stripped else ''})"
        for path, record in own.items()
    )
    return (
        f"{component}: {ENGINES}/{target}-{FLAVOR} has no plan with its weights that takes every batch from 1 to {wanted}; "
        f"there are {there or 'none'}; build one with `parure build --flavor {FLAVOR} --target {target} "
        f"--profile 1:{max(1, wanted // 2)}:{wanted}`"
    )
