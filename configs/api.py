"""Two teachers behind APIs: a cheap model answers all queries, an expensive one a fifth of them.

Paper: section 3.1.3, ChatGPT and GPT-4 at the limits and prices of its table 4, temperature 0.7 and top-p
0.95; here on the mini's puzzles. The prices are the paper's: set today's, your limits and your budget first.

    export OPENAI_API_KEY=...
    python -m experiments.collect plan --config=configs/api.py --workdir=runs/api
    python -m experiments.collect estimate --config=configs/api.py --workdir=runs/api
    python -m experiments.run --config=configs/api.py --workdir=runs/api

For another server set `--config.teachers[0].api.endpoints[0].base_url=...`, with `model`, `key_variable` and,
on Azure, `api_version` beside it. Each model's budget is 20 US dollars; a program that reaches it ends with
status 3, and resumes when `budget_money` is raised. `runlocal` uses a model `mini` on this machine's port
8000, without a key or a price: `python -m experiments.serve --model=runs/mini`, or vLLM, llama.cpp and Ollama
with another name. See docs/collection.md.
"""

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs import mini
from orca_jax.configs.arguments import parse

LOCAL = "http://127.0.0.1:8000/v1"


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds instead of hours, at no cost)."""
    args = parse(arg)
    config = mini.get_config("runlocal" if args.runlocal else "")
    config.name = "api"
    config.teachers = [
        teacher(
            "chatgpt",
            endpoint("gpt-3.5-turbo", requests=300, tokens=120_000, local=args.runlocal),
            price=dict(prompt=0.002, completion=0.002),
            lengths="chatgpt",
        ),
        teacher(
            "gpt4",
            endpoint("gpt-4", requests=18, tokens=10_000, local=args.runlocal),
            price=dict(prompt=0.03, completion=0.06),
            lengths="gpt-4",
            share=0.2,
        ),
    ]
    for stage, name in zip(config.curriculum, ("chatgpt", "gpt4"), strict=True):
        stage["name"], stage["datasets"] = name, {name: 1.0}
    if args.runlocal:
        config.puzzles.per_family = 10
        for one, model in zip(config.teachers, ("gpt-3.5-turbo", "gpt-4"), strict=True):
            one["max_tokens"] = 64
            one["api"].update(price=dict(), identity=model)  # two teachers, though one model answers for both
    return complete(config)


def teacher(name: str, endpoint: dict[str, Any], *, share: float = 1.0, **api: Any) -> dict[str, Any]:
    settings = dict(endpoints=[endpoint], temperature=0.7, top_p=0.95, budget_money=20.0, **api)
    return dict(name=name, kind="api", share=share, max_tokens=1024, api=settings)


def endpoint(model: str, *, requests: int, tokens: int, local: bool) -> dict[str, Any]:
    if local:
        return dict(model="mini", base_url=LOCAL, key_variable="")
    return dict(model=model, limits=dict(requests=requests, tokens=tokens))
