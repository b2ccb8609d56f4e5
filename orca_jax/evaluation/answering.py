"""Ways of answering that are more than one reply: AGIEval's two stages, and choosing by likelihood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orca_jax.evaluation.modes import LOG_LIKELIHOODS
from orca_jax.evaluation.questions import Question, conversation
from orca_jax.evaluation.run import Answer, Conversation
from orca_jax.records import Message, Outcome, Reply, Sampling

LogLikelihoods = Callable[[Sequence[tuple[Conversation, str]]], Sequence[float]]


def two_stages(answer: Answer, second: Answer, cue: str) -> Answer:
    """Asks; then prompt, reply and cue are asked again, and the second reply counts.

    Args:
      second: who answers the second time; AGIEval has gpt-35-turbo do it, whatever model is evaluated.
    """

    def both(conversations: Sequence[Conversation], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        first = dict(answer(conversations, sampling))
        asked = [_continued(messages, first[i].text, cue) for i, messages in enumerate(conversations)]
        for index, reply in second(asked, sampling):
            raw = {**reply.raw, "first_reply": first[index].text}
            yield index, Reply(reply.outcome, reply.text, first[index].usage + reply.usage, raw)

    return both


def _continued(messages: Conversation, reply: str, cue: str) -> Conversation:
    return (*messages[:-1], Message("user", f"{messages[-1].content}\n{reply}\n{cue}"))


def by_likelihood(log_likelihoods: LogLikelihoods, questions: Sequence[Question], system_text: str) -> Answer:
    """Replies whose `raw` holds the log-likelihoods of the question's continuations, text the likeliest.

    Args:
      log_likelihoods: of each text as the next answer of its conversation, summed over its tokens.

    Raises:
      ValueError: two questions have the same prompt and other continuations.
    """
    choices: dict[Conversation, Sequence[str]] = {}
    for question in questions:
        texts = question.extra["continuations"]
        if choices.setdefault(conversation(question, system_text), texts) != texts:
            raise ValueError(f"{question.task}/{question.id}: another question has the same prompt")

    def answer(conversations: Sequence[Conversation], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        asked = [(messages, text) for messages in conversations for text in choices[tuple(messages)]]
        scores = iter(log_likelihoods(asked))
        for index, messages in enumerate(conversations):
            texts = choices[tuple(messages)]
            yield index, _chosen(texts, [next(scores) for _ in texts])

    return answer


def _chosen(texts: Sequence[str], scores: Sequence[float]) -> Reply:
    best = max(range(len(texts)), key=scores.__getitem__)
    return Reply(Outcome.OK, texts[best], raw={LOG_LIKELIHOODS: list(scores)})
