"""How many GPUs, and which settings: the server loop as a discrete-event simulation."""
