"""A tiny model with a chat template, whose random answers call tools about as often as not.

One token a character, and `<call>`, `</call>` and `<end>`. A call of the tool `press` is `<call>KEY</call>`.
"""

from __future__ import annotations

from pathlib import Path

TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ '[' + t.function.name + ']' }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role[0] + ':' }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<call>' }}{% if c.function.name != 'press' %}{{ c.function.name }}{% endif %}"
    "{% for k, v in c.function.arguments.items() %}{{ k if k != 'key' else '' }}{{ v }}{% endfor %}"
    "{{ '</call>' }}{% endfor %}{% endif %}"
    "{{ m.content }}{{ '<end>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
READING = {
    "defaults": {"role": "assistant"},
    "start_anchor": "a:",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "press", "arguments": {"key": "{content}"}},
            },
        },
        "content": {"close": "<end>", "content": "text"},
    },
}
SPECIAL = ("<pad>", "<end>", "<call>", "</call>")
LETTERS = [*"0123456789abcdefghijklmnopqrstuvwxyz:[]{}'_.+=?-\n "]
LIKELY = ("<end>", "<call>", "</call>", "0", "1")
"""What a model that was just made says most of the time."""


def save_tiny_caller(
    folder: Path, template: str | None = TEMPLATE, reads: bool = True, width: int = 32
) -> Path:
    """A checkpoint: a Qwen2 of 2 layers and 4 heads with random weights and a bias for what makes calls."""
    import torch
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in SPECIAL[2:]])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    wrapped.chat_template = template
    if reads:
        wrapped.response_template = READING
    torch.manual_seed(0)
    size = 64
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # one direction is the same in every embedding, and the head reads from it how likely a token is
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = -1.0
        for token in LIKELY:
            model.lm_head.weight[vocabulary[token], 0] = 1.0
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
