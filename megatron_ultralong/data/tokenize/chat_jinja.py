r"""The templates of :data:`~megatron_ultralong.data.tokenize.chat_template.TEMPLATES` as Jinja.

For tokenizers that bring none: what transformers and engines write with them is what rows of
``prepare chat`` say. ``DATE`` stands for the date that is written where a caller gives none.
"""

import json

from megatron_ultralong.model.families.family import Turns

LLAMA3 = r"""
{%- for message in messages -%}
{{ '<|begin_of_text|>' if loop.first }}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}
""".strip()

PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] + ':\n' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)

LLAMA3_1 = r"""
{%- macro head(role) -%}
{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- endmacro -%}
{%- set tools = tools if tools is defined else none -%}
{%- set builtin_tools = builtin_tools if builtin_tools is defined else none -%}
{%- set end_of_call = '<|eot_id|>' if builtin_tools is none else '<|eom_id|>' -%}
{%- set system = '' -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system, messages = messages[0]['content'] | trim, messages[1:] -%}
{%- endif -%}
{{ '<|begin_of_text|>' + head('system') }}
{{- 'Environment: ipython\n' if builtin_tools is not none or tools is not none }}
{%- if builtin_tools is not none -%}
{{ 'Tools: ' + builtin_tools | reject('equalto', 'code_interpreter') | join(', ') + '\n\n' }}
{%- endif -%}
{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' }}
{{- (date_string if date_string is defined else DATE) + '\n\n' + system + '<|eot_id|>' }}
{%- if tools is not none -%}
{{ head('user') + 'Given the following functions, please respond with a JSON for a function ' }}
{{- 'call with its proper arguments that best answers the given prompt.\n\n' }}
{{- 'Respond in the format ' }}
{{- '{"name": function name, "parameters": dictionary of argument name and its value}.' }}
{{- 'Do not use variables.\n\n' }}
{%- for tool in tools -%}{{ tool | tojson(indent=4) + '\n\n' }}{%- endfor -%}
{{ messages[0]['content'] | trim + '<|eot_id|>' }}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] in ('tool', 'ipython') -%}
{{ head('ipython') + message['content'] | tojson + '<|eot_id|>' }}
{%- elif 'tool_calls' in message -%}
{%- if message['tool_calls'] | length != 1 -%}
{{ raise_exception('one tool call in a turn is all that this template writes') }}
{%- endif -%}
{%- set call = message['tool_calls'][0]['function'] -%}
{{ head('assistant') }}
{%- if builtin_tools is not none and call['name'] in builtin_tools -%}
{{ '<|python_tag|>' + call['name'] + '.call(' }}
{%- for name, value in call['arguments'] | items -%}
{{ name + '="' + value + '"' + ('' if loop.last else ', ') }}
{%- endfor -%}
{{ ')' + end_of_call }}
{%- else -%}
{{ '{"name": "' + call['name'] + '", "parameters": ' + call['arguments'] | tojson + '}' }}
{{- end_of_call }}
{%- endif -%}
{%- else -%}
{{ head(message['role']) + message['content'] | trim + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{{ head('assistant') if add_generation_prompt }}
""".strip()


def of_family(turns: Turns) -> str:
    """The turns of a family's table. A served model writes on behind what rows do not learn."""
    first = _text(turns.begin)
    if turns.default_system:
        system = _text(turns.begin + "".join(turns.turn("system", turns.default_system)))
        first = f"{first} if message['role'] == 'system' else {system}"
    lines = ["{%- for message in messages -%}", f"{{{{ ({first}) if loop.first }}}}"]
    for number, (role, before) in enumerate(turns.before.items()):
        start, end = _text("".join(before)), _text("".join(turns.after[role]))
        lines.append(f"{{%- {'elif' if number else 'if'} message['role'] == {_text(role)} -%}}")
        content = "message['content']"
        if role == "assistant":
            # The empty text stays: models that were tuned in a template have it word for word.
            content = "(\"\" if loop.last else '') + message['content'].lstrip()"
            if turns.before_last:
                lines += _parts(turns)
                content = "before + answer.lstrip()"
        lines.append(f"{{{{ {start} + {content} + {end} }}}}")
    answer = _text("".join(turns.before["assistant"]))
    if turns.before_last:  # a model that was taught thoughts is asked for one by enable_thinking
        thinks = "enable_thinking is defined and enable_thinking"
        answer = f"({answer} + ('' if {thinks} else {_text(turns.before_last)}))"
    lines += ["{%- endif -%}", "{%- endfor -%}", f"{{{{ {answer} if add_generation_prompt }}}}"]
    return "\n".join(lines)


def _parts(turns: Turns) -> list[str]:
    """``before`` and ``answer`` of a message, see :meth:`Turns.parted`."""
    start, end = (_text(mark.strip()) for mark in turns.thought)
    head, tail = map(_text, turns.thought)
    thought = f"parts[0].rstrip('\\n').split({start})[-1].strip('\\n')"
    return [
        f"{{%- set parts = message['content'].split({end}) -%}}",
        f"{{%- set thought = {thought} if parts | length > 1 else '' -%}}",
        "{%- set answer = parts[-1] -%}",
        f"{{%- set before = {head} + thought + {tail} if loop.last else '' -%}}",
    ]


def _text(text: str) -> str:
    """As Jinja writes it, which reads it as Python does."""
    return json.dumps(text, ensure_ascii=False)
