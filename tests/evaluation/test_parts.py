"""Answers of requests that several hosts share, by number: likelihoods here; replies are in test_run.py."""

import pytest

from orca_jax.evaluation import parts

REQUESTS = [["loglikelihood", f"Is it {i % 7}?", "Yes"] for i in range(20)]  # some are equal


class Model:
    """Answers in pairs, as likelihoods are; it may be killed after some answers."""

    def __init__(self, killed_after=None):
        self.asked, self.killed_after = [], killed_after

    def __call__(self, numbers):
        for number in reversed(numbers):
            if len(self.asked) == self.killed_after:
                raise KeyboardInterrupt
            self.asked.append(number)
            yield number, [-number / 3, number % 2 == 0]


def run(directory, model, part=parts.WHOLE, requests=REQUESTS):
    return parts.answered(requests, directory / "answers.jsonl", part, model)


@pytest.mark.parametrize("count", [2, 3, 30])
def test_parts_are_the_whole_which_asks_nothing_again(tmp_path, count):
    models = [Model() for _ in range(count)]
    for which, one in enumerate(models, 1):
        run(tmp_path, one, (which, count))
    assert sorted(number for one in models for number in one.asked) == list(range(20))
    assert run(tmp_path, Model(killed_after=0)) == dict(Model()(range(20)))
    assert run(tmp_path, Model(killed_after=0)) == dict(Model()(range(20)))


def test_a_killed_host_and_the_whole_ask_only_what_is_missing(tmp_path):
    run(tmp_path, Model(), (1, 2))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Model(killed_after=4), (2, 2))
    with (tmp_path / "answers-2-of-2.jsonl").open("a") as file:
        file.write('{"request": "torn')
    again = Model()
    assert run(tmp_path, again, (2, 2)).keys() == set(range(1, 20, 2))
    assert len(again.asked) == 10 - 4
    (tmp_path / "answers-1-of-2.jsonl").unlink()
    last = Model()
    run(tmp_path, last)
    assert sorted(last.asked) == list(range(0, 20, 2))


def test_other_requests_in_the_file_answer_nothing(tmp_path):
    run(tmp_path, Model())
    others, model = [["loglikelihood", "Is it?", "No"], *REQUESTS], Model()
    assert len(run(tmp_path, model, requests=others)) == 21
    assert model.asked == [0]
