"""Folders of small causal language models over whole words."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("<unk>", "<eos>", "<|im_start|>", "<|im_end|>", "user", "assistant", "what", "is", "this", "?", "a", "mug")
CHAT = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {{ message.content }} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def word_tokenizer(eos="<eos>", chat=None):
    known = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = ["<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=known, unk_token="<unk>", eos_token=eos, additional_special_tokens=extra, model_max_length=96
    )
    tokenizer.chat_template = chat
    return tokenizer


def write_language(folder, *, seed=0, tied=True, eos="<eos>", chat=None, dtype=torch.float32, **saving):
    """Write a random Llama of two blocks, without a padding token."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder, **saving)
    word_tokenizer(eos, chat).save_pretrained(folder)
    return folder
