"""What operators watch, in the text format of Prometheus."""

from __future__ import annotations

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Of one service, in a registry of its own. Rates, as of evaluations per second, are Prometheus' to take."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ttsnap_requests", "Requests by outcome.", ["outcome"], registry=self.registry
        )  # done, cancelled, refused, failed
        self.latency = Histogram(
            "ttsnap_request_seconds", "From a request to its images.", buckets=SECONDS, registry=self.registry
        )
        self.nfe = Counter("ttsnap_nfe", "Denoiser evaluations.", registry=self.registry)
        self.places = Counter(
            "ttsnap_batch_places", "Places in the denoiser's batches, in use or not.", registry=self.registry
        )
        self.phases = Counter("ttsnap_phase_seconds", "Time of the device by phase.", ["phase"], registry=self.registry)
        self.fill = Gauge("ttsnap_batch_fill", "Share of the denoiser's last batch in use.", registry=self.registry)
        self.waiting = Gauge("ttsnap_queue", "Requests that wait.", registry=self.registry)
        self.active = Gauge("ttsnap_active", "Searches that run.", registry=self.registry)
        self.engines = Gauge("ttsnap_configurations", "Configurations that are kept ready.", registry=self.registry)
        if torch.cuda.is_available():
            memory = Gauge("ttsnap_gpu_memory_bytes", "Memory that PyTorch allocated.", registry=self.registry)
            memory.set_function(torch.cuda.memory_allocated)

    def text(self) -> bytes:
        """All of it, as it is now."""
        return generate_latest(self.registry)
