"""What the loop of the paper calls at every step, and what a fast mode lets it take from an earlier one.

In exact mode each of these does what its equation says and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from parure.components import ComponentRunner
from parure.executor import FloatArray
from parure.modes import Mode

if TYPE_CHECKING:
    from parure.loop import LoopOptions, Ornament, Person


class WearingMask:
    """f_m and M_pred of a mask M (Eq. 3). They change only when M does, and are kept where the mode says so."""

    def __init__(self, run: ComponentRunner, person: Person, ornament: Ornament, mode: Mode) -> None:
        self._run, self._person, self._ornament, self._mode = run, person, ornament, mode
        self._area = max(float(person.box_mask.sum()), 1.0)
        self._seen: FloatArray | None = None
        self._moved = float("inf")

    def __call__(self, k: int, count: int, M: FloatArray, M_pred: FloatArray) -> tuple[FloatArray, FloatArray]:
        """f_m [1, L] and M_pred [1, 1, s, s] at step k of `count`; `M_pred` is the last one."""
        if self._seen is None:
            self._f_m, M_pred = self._refreshed(M)
        elif M is self._seen:
            return self._f_m, M_pred
        elif self._mode.refreshes(k, count, self._moved):
            before = M_pred
            self._f_m, M_pred = self._refreshed(M)
            if self._mode.settled:
                self._moved = float(np.abs(M_pred - before).sum()) / self._area
        else:
            self._run.watch.spare("reference_net", "mask_head")
            return self._f_m, M_pred
        self._seen = M
        return self._f_m, M_pred

    def _refreshed(self, M: FloatArray) -> tuple[FloatArray, FloatArray]:
        f_m = self._run.reference_net(self._person.masked_latents, M, self._ornament.tokens)
        return f_m, self._run.mask_head(f_m, self._ornament.features, M)


class Denoiser:
    """eps of one pass: the U-Net on what it is given, or its outer blocks on its own deep features of before."""

    def __init__(self, run: ComponentRunner, person: Person, ornament: Ornament, mode: Mode) -> None:
        self._run, self._person, self._ornament, self._mode = run, person, ornament, mode
        self._deep: FloatArray | None = None

    def __call__(self, k: int, z: FloatArray, t: FloatArray, M: FloatArray, f_m: FloatArray) -> FloatArray:
        c, f_o = self._ornament.tokens, self._ornament.features
        seen = (z, self._person.masked_latents, M, t, c, f_o, f_m)
        if self._mode.deep == 1:
            return self._run.unet(*seen)
        if self._deep is None or self._mode.dives(k):
            eps, self._deep = self._run.unet_with_deep(*seen)
            return eps
        self._run.watch.spare("unet")
        return self._run.unet_shallow(*seen, self._deep)


class Guided:
    """eps, or eps_u + g (eps_c - eps_u), where the unconditional pass sees the ornament absent."""

    def __init__(self, run: ComponentRunner, person: Person, ornament: Ornament, options: LoopOptions) -> None:
        self._run, self._mode, self._g = run, options.mode, options.guidance
        self._conditional = Denoiser(run, person, ornament, options.mode)
        self._both: Denoiser | None = None
        if self._g != 1.0:
            absent = ornament.absent()
            self._unconditional = Denoiser(run, person, absent, options.mode)
            if options.joined and options.mode.deep == 1:  # deep features are kept pass by pass
                self._both = Denoiser(run, person.twice(), ornament.beside(absent), options.mode)
        self._difference: FloatArray | None = None

    def __call__(self, k: int, count: int, z: FloatArray, t: FloatArray, M: FloatArray, f_m: FloatArray) -> FloatArray:
        """z and M [1, ., s, s], t [1] at step k of `count` -> eps [1, 4, s, s]."""
        seen = (z, t, M, f_m)
        if self._g == 1.0:
            return self._conditional(k, *seen)
        if not self._mode.guides(k, count):
            self._run.watch.spare("unet")
            return self._conditional(k, *seen)
        if self._difference is not None and not self._mode.contrasts(k):
            self._run.watch.spare("unet")
            return self._conditional(k, *seen) + np.float32(self._g - 1) * self._difference
        eps, eps_u = self._passes(k, *seen)
        self._difference = eps - eps_u
        return eps_u + np.float32(self._g) * self._difference

    def _passes(self, k: int, *seen: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of the conditional and the unconditional pass: two calls, or one of a batch of two."""
        if self._both is None:
            return self._conditional(k, *seen), self._unconditional(k, *seen)
        eps = self._both(k, *(np.concatenate([array, array]) for array in seen))
        return eps[:1], eps[1:]
