"""Small chat templates of the same shape as those of well-known families, each with a turn as its model writes it.

They are written for the tests: the real templates say more, but open and close turns, calls and results alike.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.tiny import make_tiny_tokenizer

QWEN_TOOLS = """\
{%- if tools %}{{- '<|im_start|>system\\nTools:\\n' }}
{%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{%- endfor %}
{{- 'Write <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}{%- endif %}"""
QWEN_CALL = (
    """{{- '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' }}"""
)
XML_CALL = """\
{{- '<tool_call>\\n<function=' + f.name + '>\\n' }}
{%- for k, v in f.arguments.items() %}
{{- '<parameter=' + k + '>\\n' + (v | string if v is string or v is number else v | tojson) + '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}"""
GLM_CALL = """\
{{- '\\n<tool_call>' + f.name + '\\n' }}
{%- for k, v in f.arguments.items() %}
{{- '<arg_key>' + k + '</arg_key>\\n<arg_value>' + (v if v is string else v | tojson) + '</arg_value>\\n' }}
{%- endfor %}{{- '</tool_call>' }}"""


def chatml(call: str, *, said: str = "{%- set said = m.content %}", opening: str = "") -> str:
    """Return a template of Qwen's shape, whose results stand in a user's turn together."""
    return (
        QWEN_TOOLS
        + """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}"""
        + said
        + """
{{- '<|im_start|>assistant\\n' + said }}
{%- for c in m.tool_calls or [] %}
{%- set f = c.function %}
{%- if not loop.first or m.content %}{{- '\\n' }}{%- endif %}
"""
        + call
        + """
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n"""
        + opening
        + """' }}{%- endif %}"""
    )


STRIPS_EARLIER = (
    "{%- set said = m.content if loop.index0 > ns.last else m.content.split('</think>')[-1].lstrip('\\n') %}"
)
THINKS_NOW = """
{%- set thought = m.reasoning_content or m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set thought = '<think>\\n' + thought + '\\n</think>\\n\\n' %}
{%- set said = (thought if loop.index0 > ns.last else '') + m.content.split('</think>')[-1].lstrip('\\n') %}"""


def llama(tools_with_user: bool) -> str:
    """Return a template of Llama 3.1's shape (tools in the first question) or of 3.2's (tools with the system)."""
    system = "" if tools_with_user else "{%- if tools %}{{- '\\n' + (tools | tojson) }}{%- endif %}"
    question = "{%- if tools and loop.first %}{{- (tools | tojson) + '\\n' }}{%- endif %}" if tools_with_user else ""
    return (
        "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nDate' }}"
        + system
        + """{{- '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
{%- set f = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + f.name + '", "parameters": ' }}
{{- (f.arguments | tojson) + '}<|eot_id|>' }}
{%- elif m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) + '<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
"""
        + question
        + """{{- (m.content | trim) + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
    )


MISTRAL = """\
{%- set ns = namespace(turn=0, last=0) %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{%- set ns.turn = ns.turn + 1 %}{%- endif %}
{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == ns.last %}
{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{- raise_exception('ids of calls have 9 characters') }}{%- endif %}
{{- '{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + ', "id": "' + c.id + '"}' }}
{{- ']' + eos_token if loop.last else ', ' }}
{%- endfor %}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id is undefined or m.tool_call_id | length != 9 %}
{{- raise_exception('ids of calls have 9 characters') }}{%- endif %}
{{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}
{%- endfor %}"""

GPT_OSS = """\
{{- '<|start|>system<|message|>Channels: analysis, commentary, final.<|end|>' }}
{%- if tools %}{{- '<|start|>developer<|message|>' + (tools | tojson) + '<|end|>' }}{%- endif %}
{%- set ns = namespace(name=none) %}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- set f = m.tool_calls[0].function %}
{%- set ns.name = f.name %}
{%- set thought = m.thinking or m.content %}
{%- if thought %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' }}{%- endif %}
{{- '<|start|>assistant to=functions.' + f.name + '<|channel|>commentary json<|message|>' }}
{{- (f.arguments | tojson) + '<|call|>' }}
{%- elif m.role == 'assistant' %}
{%- if m.thinking and loop.last %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- set ns.name = none %}
{%- elif m.role == 'tool' %}
{%- if ns.name is none %}{{- raise_exception('a result without a call') }}{%- endif %}
{{- '<|start|>functions.' + ns.name + ' to=assistant<|channel|>commentary<|message|>' }}
{{- (m.content | tojson) + '<|end|>' }}
{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

GLM = (
    """\
{{- '[gMASK]<sop>' }}
{%- if tools %}{{- '<|system|>\\nTools: ' + (tools | tojson) }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|assistant|>' }}
{%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
{%- for c in m.tool_calls or [] %}{%- set f = c.function %}"""
    + GLM_CALL
    + """{%- endfor %}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|observation|>' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
)

LFM2_CALL = """\
{{- '<|tool_call_start|>[' }}
{%- for c in m.tool_calls %}{{- c.function.name + '(' }}
{%- for k, v in c.function.arguments.items() %}
{{- k + '=' + (v | tojson) + ('' if loop.last else ', ') }}{%- endfor %}{{- ')' + ('' if loop.last else ', ') }}
{%- endfor %}{{- ']<|tool_call_end|>' }}"""


def lfm2(call: str = LFM2_CALL) -> str:
    """Return a template of LFM2's shape; some of its versions write no calls."""
    return (
        """\
{{- bos_token }}
{%- if tools %}{{- '<|im_start|>system\\nList of tools: <|tool_list_start|>' + (tools | tojson) }}
{{- '<|tool_list_end|><|im_end|>\\n' }}{%- endif %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'tool' %}{{- '<|tool_response_start|>' + m.content + '<|tool_response_end|>' }}
{%- else %}{{- m.content }}{%- endif %}
{%- if m.tool_calls %}"""
        + call
        + """{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
    )


GEMMA4 = """\
{%- macro write(v) %}{%- if v is string %}{{- '<|"|>' + v + '<|"|>' }}
{%- elif v is sequence %}{{- '[' }}{%- for x in v %}{{- write(x) + ('' if loop.last else ',') }}{%- endfor %}{{- ']' }}
{%- else %}{{- v | tojson }}{%- endif %}{%- endmacro %}
{{- bos_token }}
{%- if tools %}{{- '<|turn>system\\n<|tool>' + (tools | tojson) + '<tool|><turn|>\\n' }}{%- endif %}
{%- set ns = namespace(open=false) %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{{- '<|tool_response>response:' + m.name + '{value:' + write(m.content) + '}<tool_response|>' }}
{%- else %}
{%- if m.role == 'user' or not ns.open %}
{{- '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}{%- endif %}
{{- m.content }}
{%- for c in m.tool_calls or [] %}{{- '<|tool_call>call:' + c.function.name + '{' }}
{%- for k, v in c.function.arguments.items() %}{{- k + ':' + write(v) + ('' if loop.last else ',') }}{%- endfor %}
{{- '}<tool_call|>' }}{%- endfor %}
{%- set ns.open = m.tool_calls is defined and m.tool_calls | length > 0 %}
{%- if not ns.open %}{{- '<turn|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.open %}{{- '<|turn>model\\n' }}{%- endif %}"""

DEEPSEEK = """\
{{- bos_token }}{%- if tools %}{{- (tools | tojson) }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}{%- if loop.last %}{{- '' }}{%- endif %}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<｜tool▁outputs▁begin｜>' }}{%- endif %}
{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<｜tool▁outputs▁end｜>' }}{%- endif %}
{%- else %}
{{- '<｜Assistant｜>' + (m.content or '').split('</think>')[-1] }}
{%- if m.tool_calls and m.content is none %}{{- '<｜tool▁calls▁begin｜>' }}
{%- for c in m.tool_calls %}
{%- set f = c.function %}
{{- '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + f.name + '\\n```json\\n' + f.arguments + '\\n```' }}
{{- '<｜tool▁call▁end｜>' + ('' if loop.last else '\\n') }}{%- endfor %}{{- '<｜tool▁calls▁end｜>' }}{%- endif %}
{{- '<｜end▁of▁sentence｜>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """A template, its tokens beside those of the tiny tokenizer, and a turn that searches for `capital of Peru`."""

    template: str
    turn: str
    """Without its end."""
    end: str
    """The token that the model ends a turn of calls with."""
    reader: str
    marks: tuple[str, ...] = ()
    """Further special tokens."""
    ends: tuple[str, ...] = ()
    """Further tokens that end a turn."""
    bos: str = ""
    two: str = ""
    """A turn of two calls, for `a` and `b`; "" where the template writes none."""
    thought: str = ""
    """What each turn thinks, where the prompt opens a thought."""
    notices: tuple[str, ...] = ()
    """What is said at the start to be lost."""
    arguments_are_text: bool = False
    """And there is no content beside a call."""
    ids: tuple[str, ...] = ("000000001", "000000002")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tiny tokenizer with the family's tokens and template."""
        tokenizer = make_tiny_tokenizer()
        marks = dict.fromkeys([*self.marks, self.end, *self.ends, *([self.bos] if self.bos else [])])
        tokenizer.add_special_tokens({"additional_special_tokens": [*marks]})
        tokenizer.eos_token = self.end
        if self.bos:
            tokenizer.bos_token = self.bos
        tokenizer.chat_template = self.template
        return tokenizer

    def end_ids(self) -> list[int]:
        """Return the tokens at which its engine ends a turn."""
        ids: Any = self.tokenizer().convert_tokens_to_ids([self.end, *self.ends])
        return list(ids)


def _hermes(query: str) -> str:
    return '<tool_call>\n{"name": "search", "arguments": {"query": "' + query + '"}}\n</tool_call>'


def _xml(query: str) -> str:
    return f"<tool_call>\n<function=search>\n<parameter=query>\n{query}\n</parameter>\n</function>\n</tool_call>"


def _glm(query: str) -> str:
    return f"\n<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>{query}</arg_value>\n</tool_call>"


def _mistral(query: str, id_: str) -> str:
    return f'{{"name": "search", "arguments": {{"query": "{query}"}}, "id": "{id_}"}}'


def _gemma(query: str) -> str:
    return '<|tool_call>call:search{query:<|"|>' + query + '<|"|>}<tool_call|>'


def _deepseek(query: str) -> str:
    json = f'{{"query":"{query}"}}'
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n{json}\n```<｜tool▁call▁end｜>"


PERU = "capital of Peru"
LLAMA_TURN = '{"name": "search", "parameters": {"query": "capital of Peru"}}'
LLAMA_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
TWO_HERMES = f"{_hermes('a')}\n{_hermes('b')}"

BEHIND_A_USER = "leaves thoughts out of earlier turns once a user's message follows"
BESIDE_CALLS = "leaves out what a turn says beside its tool calls"

FAMILIES = {
    "qwen2.5": Family(chatml(QWEN_CALL), _hermes(PERU), "<|im_end|>", "json", two=TWO_HERMES),
    "qwen3": Family(
        chatml(QWEN_CALL, said=STRIPS_EARLIER),
        _hermes(PERU),
        "<|im_end|>",
        "json",
        two=TWO_HERMES,
        notices=(BEHIND_A_USER,),
    ),
    "qwen3-2507": Family(
        chatml(QWEN_CALL, said=THINKS_NOW, opening="<think>\\n"),
        _hermes(PERU),
        "<|im_end|>",
        "json",
        two=TWO_HERMES,
        thought="Who is it?",
        notices=(BEHIND_A_USER,),
    ),
    "llama3.1": Family(
        llama(tools_with_user=True),
        LLAMA_TURN,
        "<|eot_id|>",
        "json",
        LLAMA_MARKS,
        ("<|eom_id|>",),
        "<|begin|>",
        notices=(BESIDE_CALLS,),
    ),
    "llama3.2": Family(
        llama(tools_with_user=False),
        LLAMA_TURN,
        "<|eot_id|>",
        "json",
        LLAMA_MARKS,
        ("<|eom_id|>",),
        "<|begin|>",
        notices=(BESIDE_CALLS,),
    ),
    "mistral": Family(
        MISTRAL,
        f"[TOOL_CALLS] [{_mistral(PERU, 'abcdef012')}]",
        "</s>",
        "json",
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
        bos="<s>",
        two=f"[TOOL_CALLS] [{_mistral('a', 'abcdef012')}, {_mistral('b', 'zyxwvu987')}]",
        ids=("abcdef012", "zyxwvu987"),
        notices=(BESIDE_CALLS,),
    ),
    "gpt-oss": Family(
        GPT_OSS,
        ' to=functions.search<|channel|>commentary json<|message|>{"query": "capital of Peru"}',
        "<|call|>",
        "harmony",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
        ("<|return|>",),
        notices=(BEHIND_A_USER,),
    ),
    "qwen3.5": Family(
        chatml(XML_CALL, said=STRIPS_EARLIER),
        _xml(PERU),
        "<|im_end|>",
        "vLLM's qwen3_coder",
        two=f"{_xml('a')}\n{_xml('b')}",
        notices=(BEHIND_A_USER,),
    ),
    "nemotron3": Family(
        chatml(XML_CALL), _xml(PERU), "<|im_end|>", "vLLM's qwen3_coder", two=f"{_xml('a')}\n{_xml('b')}"
    ),
    "glm4-moe": Family(
        GLM,
        _glm(PERU),
        "<|observation|>",
        "vLLM's glm45",
        ("<|assistant|>", "<|system|>", "[gMASK]", "<sop>"),
        ("<|user|>",),
        two=_glm("a") + _glm("b"),
    ),
    "lfm2": Family(
        lfm2(),
        '<|tool_call_start|>[search(query="capital of Peru")]<|tool_call_end|>',
        "<|im_end|>",
        "vLLM's lfm2",
        ("<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>", "<|tool_list_end|>"),
        bos="<|startoftext|>",
        two='<|tool_call_start|>[search(query="a"), search(query="b")]<|tool_call_end|>',
    ),
    "gemma4": Family(
        GEMMA4,
        _gemma(PERU),
        "<|tool_response>",
        "vLLM's gemma4",
        ("<|tool_call>", "<tool_call|>", "<tool_response|>", "<|turn>", "<|tool>", "<tool|>", '<|"|>'),
        ("<turn|>",),
        bos="<bos>",
        two=_gemma("a") + _gemma("b"),
    ),
    "deepseek": Family(
        DEEPSEEK,
        f"<｜tool▁calls▁begin｜>{_deepseek(PERU)}<｜tool▁calls▁end｜>",
        "<｜end▁of▁sentence｜>",
        "vLLM's deepseek_v3",
        (
            *(f"<｜tool▁{what}｜>" for what in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")),
            *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
        ),
        bos="<｜begin▁of▁sentence｜>",
        two=f"<｜tool▁calls▁begin｜>{_deepseek('a')}\n{_deepseek('b')}<｜tool▁calls▁end｜>",
        arguments_are_text=True,
        notices=(BEHIND_A_USER,),
    ),
}
