"""The shipped bases' tokenizer: one token a character, and a few whole words."""

from tokenizers import AddedToken, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from multiticket.tasks.sorted_tags import CLOSE, OPEN

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
WORDS = (OPEN, CLOSE, "FIRST", "LAST")
"""Single tokens that are not special: decoding keeps them. None can be part of a CamelCase name."""
CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII and the line break, a token each, besides WORDS; padding on the left, for generation.

    It is Qwen2's own byte-level tokenizer without merges, because `AutoTokenizer` reads any Qwen2 folder as one of that
    class. The vocabulary has byte-level spellings of characters (a space is `Ġ`). Any other character gives no token.
    """
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [spell.pre_tokenize_str(character)[0][0] for character in CHARACTERS]
    vocabulary = {token: i for i, token in enumerate([PAD, END, UNKNOWN, *spelled])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return tokenizer
