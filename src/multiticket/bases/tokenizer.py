"""The shipped bases' tokenizer: one token a character, and a few whole words."""

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from multiticket.tasks.sorted_tags import CLOSE, OPEN

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
WORDS = (OPEN, CLOSE, "FIRST", "LAST")
"""Single tokens that are not special: decoding keeps them. None can be part of a CamelCase name."""
CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII and the line break, a token each, besides WORDS; padding on the left, for generation."""
    vocabulary = {token: i for i, token in enumerate([PAD, END, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
