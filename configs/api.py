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

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs import mini
from orca_jax.configs.arguments import parse

LOCAL = dict(model="mini", base_url="http://127.0.0.1:8000/v1", key_variable="")
# Model, share of the queries, limits a minute, price of 1,000 tokens, and whose lengths are expected.
TEACHERS = {
    "chatgpt": ("gpt-3.5-turbo", 1.0, (300, 120_000), (0.002, 0.002), "chatgpt"),
    "gpt4": ("gpt-4", 0.2, (18, 10_000), (0.03, 0.06), "gpt-4"),
}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds instead of hours, at no cost)."""
    args = parse(arg)
    config = mini.get_config("runlocal" if args.runlocal else "")
    config.name, config.teachers = "api", []
    for stage, name in zip(config.curriculum, TEACHERS, strict=True):
        stage["name"], stage["datasets"] = name, {name: 1.0}
        model, share, (requests, tokens), (prompt, completion), lengths = TEACHERS[name]
        api = dict(temperature=0.7, top_p=0.95, budget_money=20.0, lengths=lengths)
        if args.runlocal:
            api.update(endpoints=[LOCAL], identity=model)  # two teachers, though one model answers for both
        else:
            endpoint = dict(model=model, limits=dict(requests=requests, tokens=tokens))
            api.update(endpoints=[endpoint], price=dict(prompt=prompt, completion=completion))
        most = 64 if args.runlocal else 1024
        config.teachers.append(dict(name=name, kind="api", share=share, max_tokens=most, api=api))
    if args.runlocal:
        config.puzzles.per_family = 10
    return complete(config)
