"""Chat templates with the tokens and rules of well-known models, in the words of this test.

`[[` and `]]` stand around what the assistant says: `marked` turns them into `{% generation %}`, `unmarked` drops them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from tiny import byte_tokenizer


class Family(NamedTuple):
    """template: with [[ and ]]. specials: its special tokens. said: what is learned of an answer, {} for its text.

    last: the same of the last turn, where it differs. end: the token that ends an answer.
    """

    template: str
    specials: tuple[str, ...]
    said: str
    last: str | None = None


LLAMA_3 = Family(
    """{{- bos_token }}{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{%- if message['role'] == 'assistant' %}[[{{- message['content'] | trim + '<|eot_id|>' }}]]
{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "{}<|eot_id|>",
)
QWEN_3 = Family(  # thoughts are shown for the answer to the last question only, where there is an empty place for them
    """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}
{%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}{%- set content = message.content %}
{%- if message.role == 'assistant' %}{%- set thought = message.reasoning_content or '' %}
{%- if '</think>' in content %}{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>assistant\n' }}[[
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
{%- endif %}{{- content }}
{%- for call in message.tool_calls or [] %}{{- '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>' }}]]{{- '\n' }}
{%- elif message.role == 'tool' %}{{- '<|im_start|>user\n<result>\n' + content + '\n</result><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    ("<|im_start|>", "<|im_end|>"),
    "{}<|im_end|>",
    "<think>\n\n</think>\n\n{}<|im_end|>",
)
GEMMA_3 = Family(  # no system turn: its text stands before the first question; turns alternate
    """{{- bos_token }}{%- set first = '' %}{%- if messages[0]['role'] == 'system' %}
{%- set first = messages[0]['content'] + '\n\n' %}{%- set turns = messages[1:] %}{%- else %}
{%- set turns = messages %}{%- endif %}
{%- for message in turns %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{%- if role == 'model' %}[[{{- message['content'] | trim + '<end_of_turn>' }}]]{%- else %}
{{- message['content'] | trim + '<end_of_turn>' }}{%- endif %}{{- '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}""",
    ("<start_of_turn>", "<end_of_turn>"),
    "{}<end_of_turn>",
)
GEMMA_1 = GEMMA_3._replace(  # refuses system turns
    template="{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}"
    + GEMMA_3.template
)
MISTRAL = Family(  # the system text stands before the last question; a space before each answer, no generation prompt
    """{{- bos_token }}{%- set system = '' %}{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\n\n' %}
{%- set turns = messages[1:] %}{%- endif %}
{%- for message in turns %}{%- if message['role'] == 'user' %}
{{- '[INST] ' + (system if loop.index0 == 0 else '') + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'assistant' %}[[{{- ' ' + message['content'] | trim + eos_token }}]]
{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}""",
    ("[INST]", "[/INST]"),
    " {}</s>",
)
PHI_4 = Family(
    """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '<|im_sep|>' }}
{%- if message['role'] == 'assistant' %}[[{{- message['content'] + '<|im_end|>' }}]]
{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}""",
    ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "{}<|im_end|>",
)
GPT_OSS = Family(  # channels; the last answer ends with another token than those before
    """{{- '<|start|>system<|message|>You are a model.<|end|>' }}{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- '<|start|>assistant' }}[[
{%- if message.thinking and loop.last %}{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{{- '<|start|>assistant' }}{%- endif %}
{{- '<|channel|>final<|message|>' + message.content + ('<|return|>' if loop.last else '<|end|>') }}]]
{%- else %}{%- set role = 'developer' if message.role == 'system' else message.role %}
{{- '<|start|>' + role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}""",
    ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>"),
    "<|channel|>final<|message|>{}<|end|>",
    "<|channel|>final<|message|>{}<|return|>",
)
R1 = Family(  # the generation prompt opens a thought, which no rendered turn has
    """{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'assistant' %}
{{- '<|Assistant|>' }}[[{{- message['content'].split('</think>')[-1] + '<|eos|>' }}]]
{%- else %}{{- ('<|User|>' if message['role'] == 'user' else '') + message['content'] }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %}""",
    ("<|User|>", "<|Assistant|>", "<|eos|>"),
    "{}<|eos|>",
)
FAMILIES = {
    "Llama 3": LLAMA_3, "Qwen 3": QWEN_3, "Gemma 3": GEMMA_3, "Mistral": MISTRAL, "Phi 4": PHI_4, "gpt-oss": GPT_OSS,
}  # fmt: skip


def unmarked(family: Family) -> str:
    return family.template.replace("[[", "").replace("]]", "")


def marked(family: Family) -> str:
    return family.template.replace("[[", "{%- generation %}").replace("]]", "{%- endgeneration %}")


def tokenizer_of(family: Family, template: str | None = None) -> Any:
    """A byte tokenizer with the special tokens of `family`."""
    tokenizer = cast(Any, byte_tokenizer).__wrapped__()
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.specials)})
    tokenizer.chat_template = template or unmarked(family)
    return tokenizer
