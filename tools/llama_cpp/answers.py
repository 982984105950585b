"""Greedy tokens and their log-probabilities after a prompt of ids, in transformers and llama.cpp.

::

    python tools/llama_cpp/answers.py GGUF < prompt.json      # llama.cpp's, as JSON

llama.cpp runs in an environment of its own, in float32 (keys and values too), without any flag that
touches the rotary embedding.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS = 24


@dataclasses.dataclass
class Answer:
    """What a model says after a prompt."""

    ids: list[int]
    log_probs: list[float]
    """Of each of the ids, in nats."""
    num_prompt_tokens: int = 0


def of_transformers(folder: Path, prompt: list[int]) -> Answer:
    """Of the Hugging Face folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answer = Answer([], [])
    with torch.inference_mode():
        words = torch.tensor([prompt])
        cache = None
        for _ in range(NUM_TOKENS):
            out = model(words, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            log_probs = torch.log_softmax(out.logits[0, -1].double(), dim=-1)
            best = int(log_probs.argmax())
            answer.ids.append(best)
            answer.log_probs.append(float(log_probs[best]))
            words = torch.tensor([[best]])
    return answer


def of_llama_cpp(interpreter: Path, file: Path, prompt: dict[str, Any]) -> Answer:
    """Of the GGUF file, after ``ids``, which llama.cpp must make of ``text`` too."""
    call = [str(interpreter), __file__, str(file)]
    text = json.dumps(prompt)
    done = subprocess.run(call, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return Answer(**json.loads(done.stdout.splitlines()[-1]))


def worst(expected: Answer, found: Answer) -> tuple[int, float]:
    """Leading tokens that are equal, and the largest difference of their log-probabilities."""
    pairs = list(zip(expected.ids, found.ids, strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    differences = [
        abs(a - b) for a, b in zip(expected.log_probs[:same], found.log_probs[:same], strict=True)
    ]
    return same, max(differences, default=math.inf)


def main() -> None:
    """Answer the prompt on standard input."""
    import xllamacpp

    prompt = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = len(prompt["ids"]) + 2 * NUM_TOKENS
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = params.warmup = False
    server = xllamacpp.Server(params)
    answer = _answer(server, prompt["ids"], NUM_TOKENS)
    # the same text, cut by llama.cpp: other ids would be others in number, or say something else
    again = _answer(server, prompt["text"], 1)
    if again.ids != answer.ids[:1] or again.num_prompt_tokens != len(prompt["ids"]):
        raise RuntimeError(f"llama.cpp's tokens are others: {again} after the text, {answer}")
    print(json.dumps(dataclasses.asdict(answer)), flush=True)


def _answer(server: Any, prompt: str | list[int], count: int) -> Answer:
    options = {"n_predict": count, "temperature": 0, "n_probs": 1, "ignore_eos": True}
    done = server.handle_completions({"prompt": prompt, **options})
    rows = done["choices"][0]["logprobs"]["content"]
    ids, log_probs = [row["id"] for row in rows], [row["logprob"] for row in rows]
    return Answer(ids, log_probs, done["usage"]["prompt_tokens"])


if __name__ == "__main__":
    main()
