"""Latency and throughput of a server, by concurrency and by arrival rate."""
