"""The parts of a solver: its grid of noise levels, read from diffusers at export, and the rule that steps along it."""
