"""One token a character, and the answer tags."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Config

from base_tokenizer import CHARACTERS, WORDS, build_tokenizer

TOKENIZER = build_tokenizer()
TEXT = st.lists(st.sampled_from([*CHARACTERS, *WORDS])).map("".join)


@given(TEXT)
def test_decoding_inverts_encoding(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@given(TEXT, TEXT)
def test_a_prompt_and_its_completion_encode_apart(prompt: str, completion: str) -> None:
    whole, apart = prompt + completion, (prompt, completion)
    if any(word in whole and all(word not in part for part in apart) for word in WORDS):
        return  # a tag that straddles the border
    assert len(TOKENIZER(whole)["input_ids"]) == sum(len(TOKENIZER(part)["input_ids"]) for part in apart)


def test_characters_and_words_are_one_token_each() -> None:
    ids = [TOKENIZER(token)["input_ids"] for token in [*CHARACTERS, *WORDS]]
    assert ids == [[i] for i in range(3, 3 + 96 + 4)]
    assert len(TOKENIZER) == 103


def test_special_tokens() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (0, 1, None)
    assert TOKENIZER.decode([27, 1, 0], skip_special_tokens=True) == "7"


def test_other_characters_give_no_token() -> None:
    assert TOKENIZER("é\t١")["input_ids"] == []


def test_padding_goes_to_the_left() -> None:
    batch = TOKENIZER(["1+1=", "10+10="], padding=True)
    assert batch["input_ids"][0][:2] == [0, 0]
    assert batch["attention_mask"] == [[0, 0, 1, 1, 1, 1], [1] * 6]


@pytest.mark.parametrize("text", ["Sort by LAST:\nAnnLee\nBobRay\n", "48/2=24 's  .\n\n"])
def test_the_auto_class_reads_it_beside_a_qwen2_config(text: str, tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert read.decode(read(text)["input_ids"]) == text
    assert (read.padding_side, read.pad_token, read.eos_token) == ("left", "<pad>", "<eos>")
