"""The models `tryon` and `tryon_unary`: the runtime's own loop, inside Triton, over BLS. Imported by the server's stub."""
