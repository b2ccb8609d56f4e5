"""What requests use: bounds that hold, expectations that are learnt."""

from hypothesis import given
from hypothesis import strategies as st

from orca_jax.records import ROLES, Message, Sampling, Usage
from orca_jax.teachers import token_counts

MESSAGES = st.lists(st.builds(Message, st.sampled_from(ROLES), st.text()), max_size=4)


@given(MESSAGES, st.integers(1, 4096))
def test_a_bound_is_no_less_than_one_token_a_byte(messages, most):
    bound = token_counts.bound(messages, Sampling(max_tokens=most))
    texts = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
    assert bound.prompt_tokens > texts + 4 * len(messages)
    assert bound.completion_tokens == most


def test_expectation():
    expectation, sampling = token_counts.Expectation(), Sampling(max_tokens=1000)
    question = [Message("user", "why " * 500)]
    assert expectation.usage(question, sampling).completion_tokens == 1000
    for _ in range(300):
        expectation.learn(question, Usage(500, 200))
    expected = expectation.usage(question, sampling)
    assert 495 <= expected.prompt_tokens <= 505
    assert 200 <= expected.completion_tokens <= 210
    assert expectation.usage(question, Sampling(max_tokens=50)).completion_tokens == 50
    assert 90 <= expectation.tokens("why " * 100) <= 110


def test_expectation_follows_a_change():
    expectation, sampling = token_counts.Expectation(), Sampling(max_tokens=5000)
    for tokens in [100] * 200 + [1000] * 200:
        expectation.learn([Message("user", "why")], Usage(5, tokens))
    assert 950 <= expectation.usage([Message("user", "why")], sampling).completion_tokens <= 1200


def test_answers_without_prompts_are_no_trouble():
    expectation = token_counts.Expectation()
    expectation.learn([Message("user", "why")], Usage(0, 0))
    assert expectation.usage([Message("user", "why")], Sampling()).prompt_tokens > 0
