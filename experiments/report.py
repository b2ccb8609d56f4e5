"""Writes one page about a finished or unfinished run or arm set: a file that needs no network.

python -m experiments.report --workdir=runs/mini
python -m experiments.report --workdir=runs/main --out=main.html
"""

from __future__ import annotations

from orca_jax import cli

OUT = cli.Option("out", "", "The file to write; empty: WORKDIR/report.html.")
PROGRAM = cli.Program(__doc__, cli.WORKDIR, cli.SCRATCH, OUT, made=("{out}",))
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

from pathlib import Path

from orca_jax.reporting import report


def main() -> None:
    PROGRAM.main(lambda options: print(report.write(options.workdir, options.out and Path(options.out))))


if __name__ == "__main__":
    main()
