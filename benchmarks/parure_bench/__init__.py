"""Measures a served pipeline: components, the loop, the server, and the distance to the hardware's limit."""
