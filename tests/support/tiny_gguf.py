"""A GGUF file small enough for a test: Qwen2 of one or two layers with a byte-level vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, INNER, LAYERS, HEADS, GROUPS = 64, 128, 2, 4, 2
VOCABULARY = 260
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def write_tiny_gguf(path: Path, kind: Any = gguf.GGMLQuantizationType.Q8_0) -> dict[str, Any]:
    """Write it; the values that its tensors stand for, by llama.cpp's names."""
    letters = [letter for _, letter in sorted(bytes_to_unicode().items())]
    tokens = [*letters, "<s>", "<e>", "<p>", "ab"]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(258)
    writer.add_chat_template(CHAT)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    narrow = WIDTH // HEADS * GROUPS
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm.weight": (WIDTH,),
                "ffn_norm.weight": (WIDTH,),
                "attn_q.weight": (WIDTH, WIDTH),
                "attn_q.bias": (WIDTH,),
                "attn_k.weight": (narrow, WIDTH),
                "attn_k.bias": (narrow,),
                "attn_v.weight": (narrow, WIDTH),
                "attn_v.bias": (narrow,),
                "attn_output.weight": (WIDTH, WIDTH),
                "ffn_gate.weight": (INNER, WIDTH),
                "ffn_up.weight": (INNER, WIDTH),
                "ffn_down.weight": (WIDTH, INNER),
            }.items()
        }
    random, values = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        one = random.normal(1.0 if "norm" in name else 0.0, 0.1, shape).astype(np.float32)
        if len(shape) == 2:
            packed = gguf.quants.quantize(one, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            one = gguf.quants.dequantize(packed, kind)
        else:
            writer.add_tensor(name, one)
        values[name] = one
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
