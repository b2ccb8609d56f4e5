"""How many questions there are of a task, so that a part is seen to be one."""

import pytest

from orca_jax.reporting import cells, published


def test_sizes_are_those_that_the_paper_scored():
    for table in ("table_8", "table_11", "fig_14", "derived"):
        for cell in published.cells(table=table, metric="accuracy"):
            if cell.task != published.AVERAGE and cell.n:
                assert cells.published_size(cell.benchmark, cell.task, "orca", 2) == cell.n, cell


@pytest.mark.parametrize(
    ("benchmark", "task", "mode", "n", "size"),
    [
        ("bbh", "word_sorting", "answer_is", 3, 250),
        ("bbh", "ruin_names", "robust", 248, 248),
        ("truthfulqa_mc", "truthfulqa_mc", "orca", 664, 664),  # of January 2025
        ("truthfulqa_mc", "truthfulqa_mc", "orca", 685, 690),
        ("truthfulqa_mc", "truthfulqa_mc", "loglik", 408, 817),
        ("gsm8k", "gsm8k", "orca_cot", 20, 1319),
        ("gsm8k", "gsm8k", "orca_cot", 1495, 7473),
        ("gpt4_judge", "awesome_prompts", "open_ended", 163, 163),
        ("bbh", "a task of one's own", "orca", 2, None),
        ("puzzles", "navigate", "robust", 2, None),
    ],
)
def test_of_a_file_with_versions_it_is_the_one_that_fits(benchmark, task, mode, n, size):
    assert cells.published_size(benchmark, task, mode, n) == size
