"""What a server counts, for Prometheus; each server has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orca_jax.serving.worker import Worker

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Metrics:
    def __init__(self, worker: Worker):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("orca_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.left = Counter("orca_clients_left", "Requests whose client left first.", registry=registry)
        self.prompt_tokens = Counter("orca_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.reply_tokens = Counter("orca_reply_tokens", "Tokens of replies.", registry=registry)
        self.seconds = Histogram(
            "orca_request_seconds",
            "From a request's head to its answer's end.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.open = Gauge("orca_requests_open", "Requests being answered.", registry=registry)
        for name, text, value in (
            ("orca_sequences_running", "Rows of the engine in use.", lambda: worker.running),
            ("orca_sequences_waiting", "Sequences without a row.", lambda: worker.waiting),
            ("orca_rows", "Rows of the engine.", lambda: worker.slots),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def page(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)
