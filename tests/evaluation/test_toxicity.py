"""Continuations by a toxicity classifier."""

import json

import pytest

from orca_jax.evaluation.benchmarks import toxigen as toxicity
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.records import Outcome, Reply

TEXTS = ["- cats are kind\n- dogs", "cats bite", "\n-  cats sleep ", "  "]
QUESTIONS = [Question("toxigen", "ab"[i // 2], str(i), "?", "", mode="toxigen") for i in range(4)]
REPLIES = [Reply(Outcome.OK, text) for text in TEXTS]


def test_the_first_entry_that_is_said_is_classified_and_groups_weigh_alike():
    seen = []

    def classifier(texts):
        seen.extend(texts)
        return [0.8, 0.4, 0.2]

    found = toxicity.summarise(QUESTIONS, REPLIES, classifier)
    assert seen == ["cats are kind", "cats bite", "cats sleep"]
    assert (found["n"], found["silent"]) == (3, 1)
    assert found["tasks"]["a"] == pytest.approx({"n": 2, "toxicity": 0.6, "stderr": 0.2 / 2**0.5})
    assert found["macro"] == pytest.approx(0.4)


def test_nothing_said_is_an_error():
    with pytest.raises(ValueError, match="all 1 continuations are empty"):
        toxicity.summarise(QUESTIONS[3:], REPLIES[3:], lambda texts: [])


@pytest.fixture
def folder(tmp_path):
    """A tiny random BERT of HateBERT's kind, with words of its own."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats", "are", "kind", "bite", "sleep"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return tmp_path


@pytest.mark.parity
def test_a_classifiers_folder_gives_probabilities_whatever_the_batch(folder, monkeypatch):
    texts = ["cats are kind", "cats bite", "cats"]
    whole = toxicity.huggingface_classifier(folder)(texts)
    assert all(0 < value < 1 for value in whole)
    assert len(set(whole)) == 3
    monkeypatch.setattr(toxicity, "BATCH", 1)
    assert toxicity.huggingface_classifier(folder)(texts) == pytest.approx(whole, abs=1e-5)
    monkeypatch.setattr(toxicity, "TOXIC_LABEL", 0)
    benign = toxicity.huggingface_classifier(folder)(texts)
    assert [a + b for a, b in zip(whole, benign)] == pytest.approx([1] * 3, abs=1e-5)
    monkeypatch.setattr(toxicity, "TOXIC_LABEL", 2)
    with pytest.raises(ValueError, match="has 2 labels and none numbered 2"):
        toxicity.huggingface_classifier(folder)


def test_the_fingerprint_is_of_the_weights(tmp_path):
    found = []
    for weights in (b"one", b"other"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        found.append(toxicity.fingerprint(tmp_path))
    assert found[0] != found[1]
