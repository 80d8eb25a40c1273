"""What both training runs share: resumable state, curves on disk, an average of the weights, a learning rate."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Learning rate at `step`: linear warm-up, then half a cosine down to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass
class Run:
    """One training run: `modules` optimised from `step` on, saved in `folder`, resumed from there.

    The optimiser's moments are saved beside the weights (torch tensors in safetensors: nothing is pickled).
    """

    folder: Path
    modules: dict[str, nn.Module]
    steps: int
    peak_learning_rate: float
    ema_decay: float = 0.999
    step: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.named = {f"{m}.{n}": p for m, mod in self.modules.items() for n, p in mod.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            list(self.named.values()), lr=self.peak_learning_rate, weight_decay=1e-2, betas=(0.9, 0.99), fused=True
        )
        self.ema = {name: p.detach().clone() for name, p in self.named.items()}
        if (self.folder / "state.safetensors").exists():
            self._resume()

    def optimise(self, losses: Mapping[str, Tensor], total: Tensor) -> None:
        """One optimiser step on `total`; `losses` are logged."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.step, self.steps, self.peak_learning_rate)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.named.values()), 1 - decay)
        self.step += 1
        self._log({**{k: float(v.detach()) for k, v in losses.items()}, "gradient_norm": float(norm)})

    def use_average(self) -> None:
        """Put the averaged weights into the modules (the end of training; also for evaluation)."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(self.ema[name])

    def save(self) -> None:
        """Write everything that resuming needs; the previous state stays until the new one is whole."""
        tensors: dict[str, Tensor] = {"step": torch.tensor(self.step)}
        for name, parameter in self.named.items():
            tensors[f"weight/{name}"] = parameter.detach().contiguous()
            tensors[f"ema/{name}"] = self.ema[name].contiguous()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.contiguous()
        partial = self.folder / "state.partial"
        save_file(tensors, partial)
        partial.replace(self.folder / "state.safetensors")

    def _resume(self) -> None:
        tensors = load_file(self.folder / "state.safetensors")
        self.step = int(tensors["step"])
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.ema[name].copy_(tensors[f"ema/{name}"])
                moments = {k: tensors.get(f"{k}/{name}") for k in ("step", "exp_avg", "exp_avg_sq")}
                if moments["step"] is not None:  # parameters behind the last feature never get a gradient
                    self.optimizer.state[parameter] = moments

    def _log(self, values: Mapping[str, float]) -> None:
        with (self.folder / "curves.jsonl").open("a") as curves:
            curves.write(json.dumps({"step": self.step, "time": round(time.time(), 1), **values}) + "\n")


def train(run: Run, compute: Callable[[], dict[str, Tensor]], report: Callable[[int], None], save_every: int) -> None:
    """Run `compute` (named losses, `total` among them) until `run.steps`, saving as it goes."""
    while run.step < run.steps:
        losses = compute()
        run.optimise(losses, losses["total"])
        report(run.step)
        if run.step % save_every == 0 or run.step == run.steps:
            run.save()
