"""Training resumes where it was stopped, its losses are the paper's, and calibration finds what it looks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from parure_export.demo import calibrate
from parure_export.demo.guidance_loss import GuidedAttention, mask_mapping_loss
from parure_export.demo.train_tryon import loss_weights
from parure_export.demo.training import Run, cosine, train
from parure_export.model.geometry import DEMO, RawModules

STEPS = 6


def run_of(folder: Path) -> tuple[Run, nn.Linear]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return Run(folder, {"linear": module}, STEPS, 1e-2), module


def losses(run: Run, module: nn.Linear) -> Callable[[], dict[str, Tensor]]:
    def compute() -> dict[str, Tensor]:
        x = torch.randn((4, 3), generator=torch.Generator().manual_seed(run.step))
        return {"total": (module(x) - x[:, :2]).pow(2).mean()}

    return compute


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole, module = run_of(tmp_path / "whole")
    train(whole, losses(whole, module), lambda step: None, save_every=2)

    stopped, part = run_of(tmp_path / "parts")

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, losses(stopped, part), stop, save_every=2)
    resumed, again = run_of(tmp_path / "parts")
    assert resumed.step == 4
    train(resumed, losses(resumed, again), lambda step: None, save_every=2)
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    resumed.use_average()
    whole.use_average()
    assert torch.equal(module.weight, again.weight)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and all(row["total"] > 0 for row in rows)


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [cosine(step, 1000, 1.0) for step in range(1001)]
    assert rates[0] == 0.01 and max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.02)
    assert rates.index(max(rates)) in (99, 100)


def test_mask_losses_weigh_most_at_the_beginning() -> None:
    weights = [loss_weights(progress) for progress in (0.0, 0.5, 1.0)]
    assert weights[0] == (10.0, 1.0) and weights[-1] == (2.0, 0.1)
    assert weights[0] > weights[1] > weights[2]


def test_attention_mass_is_the_attention_that_lands_on_the_ornament_under_its_mask() -> None:
    """Eq. 5-8 by loops: for each query, its weights on the ornament's tokens, those under the mask, mean of heads."""
    torch.manual_seed(1)
    attention = Attention(query_dim=8, heads=2, dim_head=4)
    own, ornament, person = torch.randn(3, 1, 4, 8)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 1.0]]]])
    mass: dict[str, Tensor] = {"ornament_mask": mask}
    references = {"layer": torch.cat([ornament, person], dim=1)}
    with torch.no_grad():
        GuidedAttention("layer", True)(attention, own, references=references, attention_mass=mass)
        keys = attention.to_k(torch.cat([own, ornament, person], dim=1))[0]
        queries = attention.to_q(own)[0]
        expected = torch.zeros(4)
        for q in range(4):
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                weights = (keys[:, part] @ queries[q, part] / 2.0).softmax(dim=0)
                expected[q] += (weights[4:8] * mask.flatten()).sum() / 2
    assert torch.allclose(mass["layer"].flatten(), expected, atol=1e-6)
    assert mask_mapping_loss(mass, mass["layer"]) == 0 and mask_mapping_loss(mass, mass["layer"] + 1) == pytest.approx(
        1
    )


def test_calibration_undoes_a_blur(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    sharp = generator.normal(0, 8, (6, 16, 16)).astype(np.float32)
    truth = [calibrate._sigmoid(each) for each in sharp]
    monkeypatch.setattr(calibrate, "_final_logits", lambda *_: (sharp / 2 - 0.2, truth))
    head = nn.Module()
    head.mlp = nn.Sequential(nn.SiLU(), nn.Conv2d(3, 1, 1))
    before = head.mlp[-1].weight.detach().clone()
    modules = RawModules(vae=None, image_encoder=None, unet=None, reference_net=None, mask_head=head)  # type: ignore[arg-type]
    scale, bias = calibrate.calibrate_mask_head(modules, DEMO)
    assert scale == pytest.approx(2.0, abs=0.11) and bias == pytest.approx(0.4, abs=0.11)
    assert torch.allclose(head.mlp[-1].weight, before * scale)
