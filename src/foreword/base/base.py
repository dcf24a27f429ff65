"""`Base`: a frozen language model with its tokenizer, slots and fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from foreword.base import compose
from foreword.base.asking import Question
from foreword.base.frozen import FrozenModel, Prefixes
from foreword.base.generation import generate_texts
from foreword.base.inputs import Inputs, inputs_for, prefix_per_prompt
from foreword.base.streaming import stream_text
from foreword.prefix import Prefix


class Base(FrozenModel):
    """A frozen base model. Make one with `foreword.load`, or from a model already in memory.

    model: a Transformers decoder, encoder or encoder–decoder (docs/models.md lists them). Every parameter
    gets requires_grad False, and the model is put into eval mode.
    tokenizer: its tokenizer, or None if only tensors are used.
    weights_hash: a function that returns the hash of the stored checkpoint, called when the hash is first needed;
    without it the parameters in memory are hashed.
    Raises `UnsupportedModelError` for an architecture that takes no prefix.
    """

    def inputs(self, prompts: Sequence[str] | Sequence[Sequence[int]], prefix: Prefixes) -> Inputs:
        """Make rows and tensors for any call of `model`, with any kind of prefix.

        This is needed if a prefix is inserted among the input embeddings or depends on the row's input (kinds
        "embedding" and "conditioned"). It works for all other prefixes too.
        prompts: texts or token ids, one per row. prefix: one for all rows, or one per row.

            >>> inputs = base.inputs(["Hello", "Good morning"], prefix)
            >>> with base.attach(inputs.rows):
            ...     ids = base.model.generate(**inputs.tensors, max_new_tokens=4)
            >>> ids.shape[0]
            2

        Rows of decoders are padded on the left, rows of other models on the right.
        """
        return inputs_for(self, prompts, prefix_per_prompt(prefix, len(prompts)))

    def generate(
        self,
        prompts: Sequence[Question],
        prefix: Prefixes = None,
        *,
        max_new_tokens: int = 64,
        template: str | None = None,
        batch_size: int = 16,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer each prompt and return the new texts, without prompt or special tokens.

            >>> talk = [{"role": "user", "content": "Hello"}]
            >>> answers = base.generate(["Hello", talk, {"prompt": "Hello"}], [prefix, prefix, None], max_new_tokens=4)
            >>> answers[0] == answers[1]
            True

        prompts: each is a text, a conversation (a list of messages with role and content), or a row of data in any
        shape that training reads, whose answer is left out. It is rendered with the template that its prefix was
        trained with (from its record). A row without a prefix uses the tokenizer's chat template if there is one, else
        the bare text.
        template: replaces these templates for every row, for instance "{input}" for bare text.
        prefix: one for all prompts, or one per prompt. progress: called with the number of prompts finished.
        options: further arguments of Transformers' `generate`. Decoding is greedy by default. If an option is a
        function that gets row numbers, they number the rows of a batch, sorted by length and by prefix.
        """
        options = {"max_new_tokens": max_new_tokens} | options
        return generate_texts(self, prompts, prefix, template, batch_size, progress, options)

    def stream(
        self,
        prompt: Question,
        prefix: Prefix | None = None,
        *,
        max_new_tokens: int = 64,
        template: str | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Answer one prompt, and yield the new text piece by piece while it is generated in another thread.

        Arguments and errors are those of `generate`. Leaving the iterator stops the generation.

            >>> pieces = base.stream("Hello", prefix, max_new_tokens=8)
            >>> "".join(pieces).strip() == base.generate(["Hello"], prefix, max_new_tokens=8)[0]
            True
        """
        return stream_text(self, prompt, prefix, template, {"max_new_tokens": max_new_tokens} | options)

    def prefix_from_text(self, text: str, *, length: int | None = None) -> Prefix:
        """See `Prefix.from_text`."""
        return compose.from_text(self, text, length=length)

    def prefix_from_kv(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], *, position_offset: int | None = None
    ) -> Prefix:
        """See `Prefix.from_kv`."""
        return compose.from_kv(self, keys, values, position_offset=position_offset)

    def prefix_to_cache(self, prefix: Prefix, *, batch_size: int = 1) -> DynamicCache:
        """Return `prefix` as a new cache of Transformers, for `model(…, past_key_values=cache)` without `attach`.

        batch_size: rows that the cache is for. Real tokens follow at positions from the prefix's length on; an
        attention mask has to cover the prefix, too. Each call needs a cache of its own, since models write into it.

        The result is that of `attach`. If the base has sliding windows, that holds only while prefix and tokens fit
        a window (`WindowWarning`). Raises `PrefixMismatchError` if the prefix doesn't fit the base, `ExportError` if no
        cache can hold it: gates, memories and inserted prompts, layers without keys, another offset than its length, a
        prefix as long as a window, and bases whose caches hold latents.

            >>> cache = prefix.to_cache(base)
            >>> ids = torch.tensor([[0] * cache.get_seq_length() + base.tokenizer("Hello")["input_ids"]])
            >>> output = base.model.generate(
            ...     ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=4
            ... )
            >>> output.shape[1] - ids.shape[1]
            4
        """
        return compose.to_cache(self, prefix, batch_size)

    def prefix_with_offset(self, prefix: Prefix, offset: int) -> Prefix:
        """See `Prefix.with_offset`."""
        return compose.with_offset(self, prefix, offset)
