"""Released weights in, trained weights out.

python -m experiments.convert import --model=MODEL_FOLDER --out=runs/imported
python -m experiments.convert export --model=runs/openorca --out=exported --dtype=bfloat16
python -m experiments.convert adapter --model=runs/lora --out=adapter
"""

from __future__ import annotations

from orca_jax import cli

DTYPE = cli.Option("dtype", "float32", "Of exported weights.", choices=("float32", "bfloat16", "float16"))
TRAINED = cli.Option("model", "", "A workdir whose student was trained with adapters.", required=True)
PROGRAM = cli.Program(
    __doc__,
    commands={
        "import": cli.Command("A model folder as a checkpoint with checksums.", cli.MODEL, cli.OUT),
        "export": cli.Command(
            "A student as a Hugging Face model folder.", cli.MODEL, cli.OUT, DTYPE, cli.LAYOUT
        ),
        "adapter": cli.Command("Trained adapters in PEFT's format.", TRAINED, cli.OUT),
    },
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

from pathlib import Path

from orca_jax.training import convert


def main() -> None:
    PROGRAM.main(
        **{"import": lambda given: convert.import_student(Path(given.model), Path(given.out))},
        export=lambda given: convert.export_student(
            Path(given.model), Path(given.out), dtype=given.dtype, layout=given.layout
        ),
        adapter=lambda given: convert.export_adapter(Path(given.model), Path(given.out)),
    )


if __name__ == "__main__":
    main()
