"""What one picture asks of the components, and what has to wait for what."""

from __future__ import annotations

from dataclasses import dataclass

ORNAMENT = ("vae_encoder", "image_encoder", "reference_net")
LAST = "vae_decoder"
MASK = ("reference_net", "mask_head")


@dataclass(frozen=True)
class Workload:
    """`passes` of the U-Net in a step: 2 with guidance. `hits`: the share of pictures whose ornament is cached.

    `refreshes`: steps that compute the mask anew; all of them in exact mode.
    """

    steps: int
    passes: int = 1
    hits: float = 1.0
    refreshes: int | None = None

    def opening(self, *, cached: bool) -> tuple[str, ...]:
        """Calls before the first step, by component, as `LocalLoop` makes them."""
        return (*(() if cached else ORNAMENT), "vae_encoder")

    def mask(self, k: int) -> tuple[str, ...]:
        """Calls that make the mask of step k. They need those of step k - 1, and nothing of the U-Net."""
        return MASK if k < (self.steps if self.refreshes is None else self.refreshes) else ()

    def unet(self) -> tuple[str, ...]:
        """Calls of a step, once its mask is there."""
        return ("unet",) * self.passes

    def calls(self, *, cached: bool) -> tuple[str, ...]:
        """All of them."""
        steps = [(*self.mask(k), *self.unet()) for k in range(self.steps)]
        return (*self.opening(cached=cached), *(name for step in steps for name in step), LAST)

    def counts(self) -> dict[str, float]:
        """Calls of each component by an average picture."""
        counts: dict[str, float] = {}
        for cached, share in ((True, self.hits), (False, 1 - self.hits)):
            for name in self.calls(cached=cached):
                counts[name] = counts.get(name, 0.0) + share
        return {name: count for name, count in counts.items() if count}
