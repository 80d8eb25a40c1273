"""What one picture asks of the components, in the order of the loop."""

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

    def calls(self, *, cached: bool) -> tuple[str, ...]:
        """Components by name, as `LocalLoop` and `denoise` call them."""
        refreshed = self.steps if self.refreshes is None else self.refreshes
        steps = [(*(MASK if k < refreshed else ()), *(["unet"] * self.passes)) for k in range(self.steps)]
        return (*(() if cached else ORNAMENT), "vae_encoder", *(name for step in steps for name in step), LAST)

    def counts(self) -> dict[str, float]:
        """Calls of each component by an average picture."""
        counts: dict[str, float] = {}
        for cached, share in ((True, self.hits), (False, 1 - self.hits)):
            for name in self.calls(cached=cached):
                counts[name] = counts.get(name, 0.0) + share
        return {name: count for name, count in counts.items() if count}
