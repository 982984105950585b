"""Templates of a folder that write some conversations otherwise are found before the work."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_ultralong.data.tokenize.chat_template import DATE, TEMPLATES
from megatron_ultralong.data.tokenize.engines import open_reference
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate
from megatron_ultralong.data.tokenize.template_comparison import check_template, fitted_template
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer

TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
SAME = f"{{% for m in messages %}}{TURN}{{% endfor %}}"
SYSTEM = "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
OTHERS = {
    "system before the last question": (
        SYSTEM + "{% else %}{% set s = '' %}{% endif %}{% for m in messages %}"
        "{% if m.role != 'system' %}{% if loop.index == loop.length - 1 and s %}"
        "{{ '<|im_start|>system\\n' + s + '<|im_end|>\\n' }}{% endif %}" + TURN + "{% endif %}"
        "{% endfor %}"
    ),
    "system of several turns left out": (
        "{% for m in messages %}{% if m.role != 'system' or messages|length < 4 %}"
        + TURN
        + "{% endif %}{% endfor %}"
    ),
    "the last four turns": f"{{% for m in messages[-4:] %}}{TURN}{{% endfor %}}",
    "contents stripped": SAME.replace("m.content", "m.content.strip()"),
    "answers stripped": SAME.replace(
        "m.content", "(m.content | trim if m.role == 'assistant' else m.content)"
    ),
    "earlier answers stripped": SAME.replace(
        "m.content",
        "(m.content.strip() if m.role == 'assistant' and not loop.last else m.content)",
    ),
    "system stripped": SAME.replace(
        "m.content", "(m.content.strip() if m.role == 'system' else m.content)"
    ),
    "an EOS at the end": SAME + "{{ '<|im_end|>' }}",
    "lines of an answer joined": SAME.replace("m.content", "m.content.replace('\\n\\n', '\\n')"),
}
"""Templates, by what they do otherwise than chatml."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatml")
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(TEMPLATES["chatml"].special))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def check(folder: Path, text: str) -> None:
    with FolderTemplate(text, folder) as found:
        template = fitted_template(TEMPLATES["chatml"], found, DATE)
        check_template(template, found, DATE, open_reference(folder))


def test_the_same_template_is_taken(folder: Path) -> None:
    check(folder, SAME)


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_another_one_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(InputError, match="chatml is not the template in"):
        check(folder, text)
