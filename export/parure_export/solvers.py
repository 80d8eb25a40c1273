"""A diffusers scheduler -> a solver of the bundle: its grid is read, its rule is known, the result is compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers

from parure.solver import SolverError
from parure.solvers.rules import Prediction

TOLERANCE = 1e-5
VERIFIED_STEP_COUNTS = (1, 2, 3, 4, 5, 10, 20, 30, 50, 100)


@dataclass(frozen=True)
class Source:
    """Where a solver comes from: the diffusers class, our rule, and what its name says of the configuration."""

    scheduler: str
    rule: str
    overrides: Mapping[str, Any]
    predictions: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2}

SOLVERS: Mapping[str, Source] = {
    "ddim": Source("DDIMScheduler", "ddim", {}),
    "dpmpp-2m": Source("DPMSolverMultistepScheduler", "dpmpp-2m", {**_DPMPP_2M, "use_karras_sigmas": False}),
    "dpmpp-2m-karras": Source("DPMSolverMultistepScheduler", "dpmpp-2m", {**_DPMPP_2M, "use_karras_sigmas": True}),
    "unipc": Source("UniPCMultistepScheduler", "unipc", {}),
    "euler": Source("EulerDiscreteScheduler", "euler", {}),
    "euler-ancestral": Source(
        "EulerAncestralDiscreteScheduler", "euler-ancestral", {}, predictions=("epsilon", "v_prediction")
    ),
    "pndm": Source("PNDMScheduler", "plms", {"skip_prk_steps": True}, predictions=("epsilon", "v_prediction")),
    "lcm": Source("LCMScheduler", "lcm", {}),
}


def build_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler that solver `name` stands for, from a checkpoint's `scheduler_config.json`.

    As diffusers' own `from_config`, with what the solver's name says on top. Raises `SolverError` for an
    unknown name and for a configuration that no table of coefficients can express.
    """
    if name not in SOLVERS:
        raise SolverError(f"solver {name!r} is not known; expected one of {', '.join(SOLVERS)}")
    source = SOLVERS[name]
    _check_config(name, scheduler_config)
    scheduler_class = getattr(diffusers, source.scheduler)
    overrides = dict(source.overrides)
    if "clip_sample" not in scheduler_config:
        overrides["clip_sample"] = False  # the class default suits pixels; diffusers' latent pipelines switch it off
    accepted = scheduler_class._get_init_keys(scheduler_class)
    config = {key: value for key, value in scheduler_config.items() if key in accepted or key.startswith("_")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = scheduler_class.from_config(config, **{k: v for k, v in overrides.items() if k in accepted})
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise SolverError(
            f"solver {name}: diffusers' {source.scheduler} refuses the checkpoint's scheduler: {error}"
        ) from error
    _check_linear(name, scheduler)
    return scheduler
