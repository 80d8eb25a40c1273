"""The denoise-and-mask loop (Eq. 2 and 3 of the paper), over any executor. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from parure.ahead import ahead
from parure.components import ComponentRunner
from parure.denoiser import Guided, WearingMask
from parure.executor import FloatArray
from parure.modes import EXACT, Mode
from parure.solver import SolverState, SolverTable


@dataclass(frozen=True)
class Ornament:
    """What the loop needs of an ornament; it depends on nothing else, so it is computed once and kept.

    tokens [1, n, d]; features f_o [1, L], packed, in the bundle's precision.
    """

    tokens: FloatArray
    features: FloatArray

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.features.nbytes

    def absent(self) -> Ornament:
        """What the unconditional pass of guidance sees: zeros for both."""
        return Ornament(_zeros(self.tokens), _zeros(self.features))

    def beside(self, other: Ornament) -> Ornament:
        """Both as one batch."""
        pairs = ((self.tokens, other.tokens), (self.features, other.features))
        return Ornament(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Person:
    """What the loop needs of a photo: masked_latents z_m [1, 4, s, s] and box_mask M_box [1, 1, s, s]."""

    masked_latents: FloatArray
    box_mask: FloatArray

    def twice(self) -> Person:
        """As a batch of two."""
        return Person(*(np.concatenate([array, array]) for array in (self.masked_latents, self.box_mask)))


@dataclass(frozen=True)
class LoopOptions:
    """How to run the loop. `mask_loop=False` keeps M = M_box at every step (alpha_k = 0); `mode` may skip work.

    `joined`: both passes of guidance in one U-Net call of batch 2, which computes the same up to rounding.
    `ahead`: the next step's mask and features are made in a second thread, while the U-Net is at this step.
    """

    guidance: float = 1.0
    mask_loop: bool = True
    mode: Mode = EXACT
    joined: bool = False
    ahead: bool = False


@dataclass(frozen=True)
class Worn:
    """What step k is told of the mask: M and M_pred [1, 1, s, s], and features f_m [1, L]."""

    mask: FloatArray
    features: FloatArray
    predicted_mask: FloatArray


@dataclass(frozen=True)
class Step:
    """The state after step k of K: latents z_{k+1}, predicted picture latents, and the two masks.

    latents, denoised [1, 4, s, s], the latter computed when it is asked for; mask (M, which step k was given) and
    predicted_mask (M_pred) [1, 1, s, s].
    """

    index: int
    count: int
    latents: FloatArray
    denoised: Callable[[], FloatArray]
    mask: FloatArray
    predicted_mask: FloatArray


@dataclass(frozen=True)
class Noise:
    """All randomness of one picture, from its seed: the start, and one draw per step for solvers that use it."""

    start: FloatArray
    steps: FloatArray | None

    @classmethod
    def draw(cls, seed: int, table: SolverTable, shape: tuple[int, ...]) -> Noise:
        """`shape` is that of the latents, [1, 4, s, s]; the same seed gives the same noise everywhere."""
        generator = np.random.Generator(np.random.Philox(seed))
        start = generator.standard_normal(shape, dtype=np.float32)
        count = len(table.timesteps)
        steps = generator.standard_normal((count, *shape), dtype=np.float32) if table.uses_noise else None
        return cls(start, steps)

    def at(self, k: int) -> FloatArray | None:
        return None if self.steps is None else self.steps[k]


def ramp(count: int) -> FloatArray:
    """alpha_k for k = 0..count-1: linear from 0 to 1 (section 4.1); a single step trusts the box."""
    return np.linspace(0.0, 1.0, count, dtype=np.float32) if count > 1 else np.zeros(1, np.float32)


def denoise(
    run: ComponentRunner, person: Person, ornament: Ornament, table: SolverTable, noise: Noise, options: LoopOptions
) -> Generator[Step, None, None]:
    """Run the loop from noise to latents, a `Step` at a time. What the consumer does changes nothing."""
    solver = SolverState(table, noise.start)
    count = len(table.timesteps)
    unet = Guided(run, person, ornament, options)
    masks = wearing_masks(run, person, ornament, count, options)
    with closing(ahead(masks) if options.ahead else masks) as all_worn:
        for k, worn in enumerate(all_worn):
            t = table.timesteps[k : k + 1]
            eps = unet(k, count, solver.model_input(k), t, worn.mask, worn.features)
            denoised = partial(table.denoised, k, solver.sample, eps)
            solver.step(k, eps, noise.at(k))
            yield Step(k, count, solver.sample, denoised, worn.mask, worn.predicted_mask)


def wearing_masks(
    run: ComponentRunner, person: Person, ornament: Ornament, count: int, options: LoopOptions
) -> Generator[Worn, None, None]:
    """The masks of all `count` steps. None of it depends on the picture that is being denoised."""
    alpha = ramp(count) * np.float32(options.mask_loop)
    reference = WearingMask(run, person, ornament, options.mode)
    M_box = M_pred = person.box_mask
    for k in range(count):
        # Eq. 2; where alpha is 0 it is M_box itself, of which `reference` knows that nothing has changed.
        M = M_box if alpha[k] == 0 else alpha[k] * M_pred + (1 - alpha[k]) * M_box
        f_m, M_pred = reference(k, count, M, M_pred)  # Eq. 3
        yield Worn(M, f_m, M_pred)


def _zeros(like: FloatArray) -> FloatArray:
    """Read-only, so that an executor which hands them to a server at every step may copy them once."""
    zeros = np.zeros(like.shape, like.dtype)
    zeros.flags.writeable = False
    return zeros
