"""Small Hugging Face tokenizer folders of the known kinds, and chat templates of the known formats."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT_SPLIT = r"'s|'t| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def byte_level(corpus):
    """As GPT-2, Llama 3 and Qwen do it: any byte has a piece."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(GPT_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return made


def spaced(corpus, normalizer, pre_tokenizer, decoder):
    """BPE of SentencePiece's kind, with bytes for what it does not know."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer:
        made.normalizer = normalizer
    if pre_tokenizer:
        made.pre_tokenizer = pre_tokenizer
    special = ["<unk>", "<s>", "</s>", *BYTES]
    lines = (word.replace(" ", "▁") for line in corpus for word in line.split("\n"))
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=450, special_tokens=special))
    data = json.loads(made.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    made = tokenizers.Tokenizer.from_str(json.dumps(data))
    made.decoder = decoder
    return made


def stripping_decoder():
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)


def prepending(corpus):
    """As the first Llama conversions: a normalizer puts a space before every section of text."""
    before = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return spaced(corpus, before, None, stripping_decoder())


def metaspace(corpus, scheme):
    step = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    last = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return spaced(corpus, None, step, decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), last]))


def unigram(corpus):
    """Special tokens are pieces with scores here, which the model could choose for a text."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    alphabet = ["<", ">", "/", "s", "|", "_"]
    made.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet
        ),
    )
    return made


KINDS = {
    "byte_level": byte_level,
    "prepend": prepending,
    "metaspace_first": lambda corpus: metaspace(corpus, "first"),
    "metaspace_always": lambda corpus: metaspace(corpus, "always"),
    "unigram": unigram,
}
TURN_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|turn|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]"),
]


def write_folder(folder, made, template=None, bos="<s>", eos="</s>", pad=None, **settings):
    """tokenizer.json and tokenizer_config.json as published models have them."""
    made = tokenizers.Tokenizer.from_str(made.to_str())
    names = [name for name in (bos, eos, pad) if name]
    made.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False) for name in (*names, *TURN_TOKENS)]
    )
    wide = tokenizers.AddedToken("<|strip|>", normalized=False, lstrip=True, rstrip=True)
    made.add_special_tokens([wide])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        **settings,
    }
    if pad:
        config["pad_token"] = {"__type": "AddedToken", "content": pad, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def without_template(folder):
    """Takes a folder's chat template away; returns the folder."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


# The known formats, in our own words.
CHATML = """{% for m in messages %}
{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HEADERS = """{{ bos_token }}
{%- for m in messages -%}
    {{ '<|header|>' + m['role'] + '<|/header|>\\n\\n' + (m['content'] | trim) + '<|turn|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif -%}"""
INSTRUCT = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% set ns.system = m.content ~ '\\n\\n' %}
    {%- elif m.role == 'user' %}{{ '[INST] ' ~ ns.system ~ m.content ~ ' [/INST]' }}{% set ns.system = '' %}
    {%- else %}{{ ' ' ~ m.content ~ eos_token }}
    {%- endif %}
{%- endfor %}"""
LINES = """{% for m in messages %}
{% if m['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}
<|{{ m['role'] }}|>
{{ m['content'] }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""
BLOCKS = """{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ 'So: ' ~ m.content ~ '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content ~ '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SWALLOWING = """{{ bos_token }}{% for m in messages %}
{{- m.role ~ ' <|strip|> ' ~ m.content ~ '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'assistant <|strip|> ' }}{% endif %}"""
PLAIN = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'assistant' %}{{ ' ' ~ m.content ~ eos_token }}
{%- else %}{{ '\n' ~ m.role ~ ': ' ~ m.content }}{% endif %}
{%- if m.role == 'user' %}{{ '\nreply:' }}{% endif %}
{%- endfor %}"""
TEMPLATES = {
    "plain": PLAIN,
    "chatml": CHATML,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "lines": LINES,
    "blocks": BLOCKS,
    "swallowing": SWALLOWING,
}
ENDS = {
    "plain": "</s>",
    "chatml": "<|im_end|>",
    "headers": "<|turn|>",
    "instruct": "</s>",
    "lines": "</s>",
    "blocks": "<|im_end|>",
    "swallowing": "<|im_end|>",
}

# As Qwen and SmolLM2 have it: a system message of its own where the conversation has none.
DEFAULT_SYSTEM = """{% for m in messages %}
{%- if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


# As released models' templates work, in our own words.
DATED = """{{- bos_token }}
{%- set said, turns = ('', messages) %}
{%- if messages[0].role == 'system' %}
    {%- set said, turns = (messages[0].content | trim, messages[1:]) %}
{%- endif %}
{{- '<|header|>system<|/header|>\\n\\nToday is ' ~ strftime_now('%d %b %Y') ~ '\\n\\n' ~ said ~ '<|turn|>' }}
{%- for m in turns %}
{{- '<|header|>' ~ m.role ~ '<|/header|>\\n\\n' ~ m.content | trim ~ '<|turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}"""
THINKING = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set thought, said = '', m.content %}
    {%- if '</think>' in m.content %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {%- set said = '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' ~ said %}
    {%- endif %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' ~ (said if m.role == 'assistant' else m.content) ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
OPENED = """{% for m in messages %}
{%- set said = m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] %}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ said ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
LATE_SYSTEM = """{{- bos_token }}
{%- set said, turns = ('', messages) %}
{%- if messages[0].role == 'system' %}{% set said, turns = (messages[0].content, messages[1:]) %}{% endif %}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' ~ (said ~ '\\n\\n' if loop.last and said else '') ~ m.content ~ '[/INST]' }}
    {%- else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}
{%- endfor %}"""
FOLDED = """{{ bos_token }}
{%- set before, turns = ('', messages) %}
{%- if messages[0].role == 'system' %}
    {%- set before, turns = (messages[0].content ~ '\\n\\n', messages[1:]) %}
{%- endif %}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 is even) %}
        {{- raise_exception('turns must alternate') }}
    {%- endif %}
    {{- '<|im_start|>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' }}
    {{- before if loop.first else '' }}
    {{- m.content | trim ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"""
ENDING = """{{ bos_token }}{% for m in messages %}
{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ (eos_token if m.role == 'assistant' else '') }}
{{- '' if loop.last else '\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"""
ANNOUNCED = """{% for m in messages %}
{%- if m.role != 'assistant' %}{{ '<|im_start|>' ~ m.role ~ '<|header|>' }}{% endif %}
{{- m.content ~ '<|im_end|>' }}
{%- if m.role == 'user' %}{{ '<|im_start|>assistant<|header|>' }}{% endif %}
{%- endfor %}"""
FAMILIES = {
    "llama 3": DATED,
    "qwen 2.5 and smollm2": DEFAULT_SYSTEM,
    "qwen 3": THINKING,
    "mistral 7b": LATE_SYSTEM,
    "gemma 3": FOLDED,
    "olmo 2": ENDING,
    "phi 4": ANNOUNCED,
}


def begins(made, bos):
    """Puts the beginning of sequence before every text, as Llama 3's and Mistral's files do."""
    made.add_special_tokens([bos])
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
    )
    return made


# Released models' tokenizers in small: how each is made of a corpus, and its settings.
RELEASED = {
    "qwen": (
        byte_level,
        dict(template=DEFAULT_SYSTEM, bos=None, eos="<|im_end|>", pad="<|endoftext|>", add_bos_token=False),
    ),
    "smollm2": (byte_level, dict(template=DEFAULT_SYSTEM, bos="<|im_start|>", eos="<|im_end|>")),
    "gpt2": (byte_level, dict(bos="<|endoftext|>", eos="<|endoftext|>")),
    "llama3": (
        lambda corpus: begins(byte_level(corpus), "<|begin|>"),
        dict(template=HEADERS, bos="<|begin|>", eos="<|turn|>"),
    ),
    "mistral": (lambda corpus: begins(metaspace(corpus, "first"), "<s>"), dict(template=INSTRUCT)),
}


def released(folder, corpus, name):
    """Writes a released model's kind of tokenizer folder; returns its path."""
    make, settings = RELEASED[name]
    return write_folder(folder, make(corpus), **settings)
