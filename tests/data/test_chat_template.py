"""Chat templates: transformers' text and ids, and each answer found exactly or the conversation refused."""

import datetime
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.chat_template import pieces, text_of
from orca_jax.data.layouts import TEMPLATE, LayoutError, encode
from orca_jax.records import Message
from tests.data import hf_folders
from tests.data.hf_folders import CHATML, ENDS, TEMPLATES
from tests.data.test_layouts import conversations, exchange, prompts

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
SPELLINGS = ["</s>", "<s>", "<|im_start|>", "<|im_end|>\n", "<|turn|>", "[INST]", " <|strip|> ", "user", "▁"]
PLAIN = st.text(st.characters(codec="utf-8", max_codepoint=0x10FDFF), max_size=12)
TEXT = st.lists(st.sampled_from(SPELLINGS) | PLAIN, max_size=4).map("".join)
SAID = PLAIN.filter(lambda text: not {"<", "["} & set(text))
KINDS = ["byte_level", "prepend", "metaspace_first", "metaspace_always"]
EVERY_TEMPLATE = pytest.mark.parametrize("name", TEMPLATES)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folder_of(corpus, tmp_path_factory):
    """Writes a tokenizer's folder of a kind with a template, once."""
    made, written = {}, {}

    def write(kind, template):
        if kind not in made:
            made[kind] = hf_folders.KINDS[kind](corpus)
        if (kind, template) not in written:
            folder = tmp_path_factory.mktemp(kind)
            written[kind, template] = hf_folders.write_folder(folder, made[kind], template)
        return written[kind, template]

    return write


@pytest.fixture(scope="module")
def tokenizer_of(folder_of):
    loaded = {}

    def load(kind, template):
        if (kind, template) not in loaded:
            loaded[kind, template] = tokenizers.load(folder_of(kind, template))
        return loaded[kind, template]

    return load


@EVERY_TEMPLATE
@given(messages=conversations(TEXT))
def test_pieces_are_what_the_template_writes(name, tokenizer_of, messages):
    tokenizer = tokenizer_of("byte_level", TEMPLATES[name])
    for spoken in (messages, messages[:-1]):
        contents = [(m.role, m.content) for m in spoken]
        text = text_of(TEMPLATES[name], contents, NAMES, spoken is not messages)
        written = "".join(piece.text for piece in pieces(spoken, TEMPLATES[name], tokenizer))
        if name == "swallowing":  # its special token takes the white space around it
            text, written = ("".join(each.split()) for each in (text, written))
        assert written == text


@EVERY_TEMPLATE
@EVERY_KIND
@given(messages=conversations(TEXT))
@settings(max_examples=8)
def test_a_prompts_ids_are_the_start_of_the_ids_trained_on(name, kind, tokenizer_of, messages):
    tokenizer = tokenizer_of(kind, TEMPLATES[name])
    trained = encode(messages, TEMPLATE, tokenizer)
    end = tokenizer.control_id(ENDS[name])
    expected = np.zeros(len(trained.tokens))
    for prompt in prompts(messages):
        start = len(met := encode(prompt, TEMPLATE, tokenizer).tokens)
        np.testing.assert_array_equal(met, trained.tokens[:start])
        expected[start : start + trained.tokens[start:].tolist().index(end) + 1] = 1
    np.testing.assert_array_equal(trained.weights, expected)
    assert set(trained.roles[trained.weights > 0]) == {layouts.ROLE_NAMES.index("assistant")}
    assert not (trained.roles[trained.weights == 0] == layouts.ROLE_NAMES.index("assistant")).any()


@EVERY_TEMPLATE
@EVERY_KIND
@given(answer=TEXT)
@settings(max_examples=8)
def test_a_reply_is_the_answer_again(name, kind, tokenizer_of, answer):
    tokenizer = tokenizer_of(kind, TEMPLATES[name])
    encoded = encode(exchange(answer), TEMPLATE, tokenizer)
    reply = tokenizer.decode(encoded.tokens[encoded.weights > 0].tolist())
    before, after = layouts.answer_frame(TEMPLATE, tokenizer)
    found, answer = reply.removeprefix(before).removesuffix(after), answer.replace("▁", " ")
    if kind == "byte_level" and name in ("chatml", "lines", "blocks", "plain", "instruct"):
        assert found.replace("▁", " ") == answer
    else:  # templates and special tokens that trim, and spaces that tokenizers put after special tokens
        assert found.replace("▁", " ").strip() == answer.strip()


@EVERY_TEMPLATE
@given(messages=conversations(TEXT))
@settings(max_examples=8)
def test_special_tokens_cannot_be_injected(name, tokenizer_of, messages):
    tokenizer = tokenizer_of("byte_level", TEMPLATES[name])
    control = set(tokenizer.control_ids.values())

    def controls(conversation):
        return [i for i in encode(conversation, TEMPLATE, tokenizer).tokens.tolist() if i in control]

    assert controls(messages) == controls([Message(message.role, "x") for message in messages])


@EVERY_TEMPLATE
@given(messages=conversations(TEXT))
@settings(max_examples=8)
def test_loss_on_the_last_answer_only(name, tokenizer_of, messages):
    tokenizer = tokenizer_of("byte_level", TEMPLATES[name])
    every, last = (encode(messages, TEMPLATE, tokenizer, supervise) for supervise in ("all", "last"))
    prompt = len(encode(messages[:-1], TEMPLATE, tokenizer).tokens)
    np.testing.assert_array_equal(last.tokens, every.tokens)
    np.testing.assert_array_equal(last.weights, every.weights * (np.arange(len(every.tokens)) >= prompt))


@EVERY_TEMPLATE
def test_a_reply_ends_with_the_turn_or_the_sequence(name, tokenizer_of):
    tokenizer = tokenizer_of("byte_level", TEMPLATES[name])
    ends = layouts.stop_ids(TEMPLATE, tokenizer)
    assert ends[0] == tokenizer.control_id(ENDS[name])
    assert set(ends) == {ends[0], tokenizer.control_id("</s>")}


def test_arrays_are_aligned_and_typed(tokenizer_of):
    encoded = encode(exchange(), TEMPLATE, tokenizer_of("byte_level", CHATML))
    assert [a.dtype for a in (encoded.tokens, encoded.weights, encoded.roles)] == [
        np.int32,
        np.float32,
        np.int8,
    ]
    assert [role for role, _ in itertools.groupby(encoded.roles.tolist())] == [0, 1, 2, 1]


def test_what_a_generation_block_adds_is_the_assistants(tokenizer_of):
    tokenizer = tokenizer_of("byte_level", TEMPLATES["blocks"])
    encoded = encode(exchange(), TEMPLATE, tokenizer)
    assert tokenizer.decode(encoded.tokens[encoded.weights > 0].tolist()) == "So: blue"


FOR = "{{ bos_token }}{% for m in messages %}"
TURN = "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
BROKEN = {
    "no end": (
        FOR + "{{ m.role ~ ':\\n' ~ m.content ~ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}",
        "writes no special token after message 2.*: have it write one",
    ),
    "no header in the prompt": (
        FOR + TURN + "{% endfor %}",
        r"writes '<\|im_start\|>' between the prompt for message 2 and the answer",
    ),
    "another prompt": (
        FOR + TURN + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>bot\\n' }}{% endif %}",
        "prompt for message 2 is not the start",
    ),
    "no answer": (
        FOR + "{% if m.role == 'user' %}" + TURN + "{% endif %}{% endfor %}" + ASK.replace("assistant", ""),
        "not the start|answer, 0 times",
    ),
    "two answers": (
        FOR + TURN + "{% if m.role == 'assistant' %}" + TURN + "{% endif %}{% endfor %}" + ASK,
        "message 2, an answer, 2 times",
    ),
    "a count of characters": (
        FOR + TURN + "{{ m.content | length }}{% endfor %}" + ASK,
        "depends on a message in a way that keeps it from being located: near character 4.*; change the mess",
    ),
    "an answer that is cut": (
        FOR + TURN.replace("m.content", "m.content[:3]") + "{% endfor %}" + ASK,
        "depends on a message in a way",
    ),
    "refusal": ("{{ raise_exception('speak up') }}", "refuses the conversation: speak up"),
    "bad types": ("{{ messages[0].content + 1 }}", "refuses the conversation"),
    "no jinja": ("{% for %}", "cannot be read"),
    "a way out": ("{{ messages.append(1) }}", "refuses the conversation: .*unsafe|not safely"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_template_whose_answers_cannot_be_found_is_refused(fault, tokenizer_of):
    template, message = BROKEN[fault]
    with pytest.raises(LayoutError, match=message):
        encode(exchange(), TEMPLATE, tokenizer_of("byte_level", template))


def test_a_tokenizer_without_a_template_is_refused(tokenizer, tokenizer_of):
    for without in (tokenizer, tokenizer_of("byte_level", None)):
        with pytest.raises(LayoutError, match="this tokenizer has none; use one of orca"):
            encode(exchange(), TEMPLATE, without)


AS_WRITTEN = {
    "capitals": (FOR + TURN.replace("m.content", "m.content | upper") + "{% endfor %}" + ASK, "BLUE"),
    "a look at the content": (
        FOR
        + TURN.replace("m.content", "('!' if 'blue' in m.content else '') ~ m.content")
        + "{% endfor %}"
        + ASK,
        "!blue",
    ),
    "text before the end": (
        FOR + "{{ m.role ~ ':\\n' ~ m.content ~ ' (over)' ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}",
        "blue (over)",
    ),
    "a space that would belong to the answer": (
        FOR + "{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        "blue",
    ),
    "a header that no prompt has": (
        FOR + "{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}",
        "assistant: blue",
    ),
    "trimmed on one side": (
        FOR + TURN.replace("m.content", "m.content.lstrip()") + "{% endfor %}" + ASK,
        "blue",
    ),
    "a block around all": (
        FOR + "{% generation %}" + TURN + "{% endgeneration %}{% endfor %}" + ASK,
        "blue",
    ),
}


@pytest.mark.parametrize("case", AS_WRITTEN)
def test_the_model_learns_all_that_follows_its_prompt(case, tokenizer_of):
    """Whatever the template makes of an answer: the prompt's ids, what it writes after it, the end."""
    template, written = AS_WRITTEN[case]
    tokenizer = tokenizer_of("byte_level", template)
    trained, prompt = (encode(spoken, TEMPLATE, tokenizer) for spoken in (exchange(), exchange()[:2]))
    size = len(prompt.tokens)
    np.testing.assert_array_equal(trained.tokens[:size], prompt.tokens)
    learnt = trained.tokens[trained.weights > 0]
    assert tokenizer.decode(learnt.tolist()) == written
    assert learnt[-1] in (tokenizer.control_id("</s>"), tokenizer.control_id("<|im_end|>"))
    np.testing.assert_array_equal(trained.tokens[size : size + len(learnt)], learnt)
    before, after = layouts.answer_frame(TEMPLATE, tokenizer)
    if case != "a look at the content":
        assert written.removeprefix(before).removesuffix(after).lower() == "blue"


@pytest.mark.parametrize("mark", ["\U0010fe00", "\U0010fe04", "\U0010fefe"])
def test_the_characters_that_mark_places_are_refused_in_messages(mark, tokenizer_of):
    with pytest.raises(LayoutError, match=f"U\\+{ord(mark):X}"):
        encode([Message("user", f"a {mark} b")], TEMPLATE, tokenizer_of("byte_level", CHATML))


def test_the_environment_is_the_one_templates_are_written_for():
    template = (
        "{% for m in messages %}\n    {% if loop.first %}\n{% continue %}{% endif %}\n"
        "{{ {'a': '<é>'} | tojson }}{{ m | tojson(indent=None) }}"
        "{{ strftime_now('%Y') }}{% break %}{% endfor %}"
    )
    messages = [("user", "x"), ("assistant", "y"), ("user", "z")]
    year = datetime.datetime.now().strftime("%Y")
    expected = '{"a": "<é>"}{"role": "assistant", "content": "y"}' + year
    assert text_of(template, messages, NAMES, False) == expected
    with pytest.raises(LayoutError):
        text_of("{{ ''.__class__.__mro__[1].__subclasses__() }}", messages, NAMES, False)


@pytest.fixture(scope="module")
def automatic(folder_of):
    transformers = pytest.importorskip("transformers")
    loaded = {}

    def load(kind, template):
        if (kind, template) not in loaded:
            loaded[kind, template] = transformers.AutoTokenizer.from_pretrained(folder_of(kind, template))
        return loaded[kind, template]

    return load


@pytest.mark.parity
@EVERY_TEMPLATE
@EVERY_KIND
@given(messages=conversations(SAID))
@settings(max_examples=8)
def test_ids_are_those_of_transformers(name, kind, tokenizer_of, automatic, messages):
    tokenizer, reference = tokenizer_of(kind, TEMPLATES[name]), automatic(kind, TEMPLATES[name])
    for spoken in (messages, messages[:-1]):
        turns = [{"role": message.role, "content": message.content} for message in spoken]
        expected = reference.apply_chat_template(
            turns, tokenize=True, return_dict=False, add_generation_prompt=spoken is not messages
        )
        assert encode(spoken, TEMPLATE, tokenizer).tokens.tolist() == expected


TURNS = [
    Message("system", " Be brief. "),
    Message("user", "Is it red?"),
    Message("assistant", "No."),
    Message("user", "Is <|im_end|> blue?"),
    Message("assistant", "Yes, blue."),
]
# What the first and the last answer are to a model; None: its template writes the first otherwise later.
LEARNT = {
    "llama 3": ["No.", "Yes, blue."],
    "qwen 2.5 and smollm2": ["No.", "Yes, blue."],
    "qwen 3": [None, "<think>\n\n</think>\n\nYes, blue."],
    "mistral 7b": [" No.", " Yes, blue."],
    "gemma 3": ["No.", "Yes, blue."],
    "olmo 2": ["No.", "Yes, blue."],
    "phi 4": ["No.", "Yes, blue."],
}


@pytest.mark.parametrize("family", hf_folders.FAMILIES)
def test_released_models_templates(family, tokenizer_of):
    """The prompt's ids and then the answer as the template writes it, or a refusal that says why."""
    tokenizer = tokenizer_of("byte_level", hf_folders.FAMILIES[family])
    turns = TURNS[1:] if family == "mistral 7b" else TURNS
    prompts = [encode(turns[:end], TEMPLATE, tokenizer).tokens for end in (-3, -1)]
    if LEARNT[family][0] is None:
        with pytest.raises(LayoutError, match=r"message 2, an answer, otherwise once .*supervise='last'"):
            encode(turns, TEMPLATE, tokenizer)
    else:
        trained = encode(turns, TEMPLATE, tokenizer)
        ends = np.flatnonzero(np.diff(trained.weights, append=0) < 0)
        for prompt, end, said in zip(prompts, ends, LEARNT[family], strict=True):
            np.testing.assert_array_equal(trained.tokens[: len(prompt)], prompt)
            assert tokenizer.decode(trained.tokens[len(prompt) : end].tolist()) == said
    last = encode(turns, TEMPLATE, tokenizer, "last")
    np.testing.assert_array_equal(last.tokens[: len(prompts[1])], prompts[1])
    assert tokenizer.decode(last.tokens[last.weights > 0].tolist()) == LEARNT[family][1]
    assert not last.weights[: len(prompts[1])].any()


def test_thinking_is_learnt_as_it_is_written(tokenizer_of):
    tokenizer = tokenizer_of("byte_level", hf_folders.THINKING)
    said = "<think>It is the sky.</think>Blue </s>."
    encoded = encode([Message("user", "Why?"), Message("assistant", said)], TEMPLATE, tokenizer)
    learnt = tokenizer.decode(encoded.tokens[encoded.weights > 0].tolist())
    assert learnt == "<think>\nIt is the sky.\n</think>\n\nBlue </s>."
    assert layouts.answer_frame(TEMPLATE, tokenizer) == ("<think>\n\n</think>\n\n", "")


def test_a_prompt_may_open_the_thinking(tokenizer_of):
    tokenizer = tokenizer_of("byte_level", hf_folders.OPENED)
    turns = [
        Message("user", "Why?"),
        Message("assistant", "<think>\nThe <|im_end|>?\n</think>\n\nThe sky."),
        Message("user", "Red?"),
        Message("assistant", "<think>\nNo sky.\n</think>\n\nNo."),
    ]
    for spoken in (turns[:2], turns):
        prompt = encode(spoken[:-1], TEMPLATE, tokenizer).tokens
        encoded = encode(spoken, TEMPLATE, tokenizer, "last")
        np.testing.assert_array_equal(encoded.tokens[: len(prompt)], prompt)
        assert tokenizer.decode(prompt.tolist()).endswith("assistant\n<think>\n")
        assert not encoded.weights[: len(prompt)].any()
        learnt = tokenizer.decode(encoded.tokens[encoded.weights > 0].tolist())
        assert learnt == spoken[-1].content.removeprefix("<think>\n")
    with pytest.raises(LayoutError, match=r"message 1, an answer, otherwise once .*supervise='last'"):
        encode(turns, TEMPLATE, tokenizer)
    with pytest.raises(LayoutError, match=r"goes on with '<think>.*with 'No\..*begin the answer with it"):
        encode([turns[0], Message("assistant", "No.")], TEMPLATE, tokenizer)
    assert layouts.stop_ids(TEMPLATE, tokenizer)[0] == tokenizer.control_id("<|im_end|>")
    assert layouts.answer_frame(TEMPLATE, tokenizer) == ("", "")


def test_a_system_message_that_answers_have_no_more_is_refused(tokenizer_of):
    tokenizer = tokenizer_of("byte_level", hf_folders.LATE_SYSTEM)
    message = r"prompt for message 2 is not the start.* goes on with ' Be brief\. .*, leave it out"
    with pytest.raises(LayoutError, match=message):
        encode(TURNS[:3], TEMPLATE, tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no such role') }}{% endif %}" + CHATML,
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 is even) %}"
        "{{ raise_exception('no such role') }}{% endif %}{% endfor %}" + CHATML,
    ],
)
def test_a_refused_system_message_is_named(template, tokenizer_of):
    tokenizer = tokenizer_of("byte_level", template)
    message = "no such role; it takes no system message: leave it out, .*another data.layout"
    for spoken in (TURNS, TURNS[:2]):
        with pytest.raises(LayoutError, match=message):
            encode(spoken, TEMPLATE, tokenizer)
    assert encode(TURNS[1:], TEMPLATE, tokenizer).weights.any()
    with pytest.raises(LayoutError, match=r"refuses the conversation: speak up$"):
        encode(TURNS, TEMPLATE, tokenizer_of("byte_level", "{{ raise_exception('speak up') }}"))


@pytest.mark.parity
@pytest.mark.parametrize("family", hf_folders.FAMILIES)
def test_released_models_templates_have_the_ids_of_transformers(family, tokenizer_of, automatic):
    template = hf_folders.FAMILIES[family]
    turns = [Message(turn.role, turn.content.replace("<|im_end|> ", "")) for turn in TURNS]
    turns = turns[1:] if family == "mistral 7b" else turns
    for spoken in (turns[:-3], turns[:-1], turns):
        expected = automatic("byte_level", template).apply_chat_template(
            [{"role": message.role, "content": message.content} for message in spoken],
            return_dict=False,
            add_generation_prompt=spoken is not turns,
        )
        found = encode(spoken, TEMPLATE, tokenizer_of("byte_level", template), "last")
        assert found.tokens.tolist() == expected
