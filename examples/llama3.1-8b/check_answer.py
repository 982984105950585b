"""Ask a server for the tokens behind a long prompt, and compare them with transformers.

::

    python3 check_answer.py EXPORT http://127.0.0.1:8000 --prompt-tokens 9216 < text

The server is given ids, and has to say the log-probability of each token that it takes. The same
tokens are read by transformers on the CPU, whose log-probabilities are the judge: also where a tie
went the other way. A server of this machine is asked without the proxy of the environment. Exit
status 1: they differ by more than the tolerance, or the server has no such answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_TOKENS = 16


def ask(url: str, prompt: list[int]) -> list[tuple[int, float]]:
    """Greedy tokens of a server and their log-probabilities."""
    asked = {
        "model": "ultralong", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0,
        "logprobs": 1, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    is_here = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] * is_here)
    try:
        with opener.open(request) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} answers {error}: {error.read(500).decode(errors='replace')}")
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{url} does not answer: {error!r}")
    try:
        found = _rows(json.loads(text)["choices"][0]["logprobs"])
    except (ValueError, LookupError, TypeError) as error:
        shown = text[:300].decode(errors="replace")
        sys.exit(
            f"{url} does not say ids of tokens and their log-probabilities: {shown} ({error!r})"
        )
    if len(found) < NUM_TOKENS:
        print(f"the server took {len(found)} tokens, and was asked for {NUM_TOKENS}")
    return found or sys.exit("the server took no token: nothing can be compared")


def _rows(found: dict[str, Any]) -> list[tuple[int, float]]:
    if "content" in found:  # llama.cpp's form
        return [(int(row["id"]), float(row["logprob"])) for row in found["content"]]
    ids = [int(text.removeprefix("token_id:")) for text in found["tokens"]]
    return list(zip(ids, map(float, found["token_logprobs"]), strict=True))


def judge(folder: Path, dtype: str, prompt: list[int], said: list[int]) -> torch.Tensor:
    """Log-probabilities of all tokens at the places of ``said``, shape [len(said), V]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *said[:-1]]])
        logits = model(ids, logits_to_keep=len(said)).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def main() -> None:
    """Ask and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("--prompt-tokens", type=int, default=9216)
    parser.add_argument("--tolerance", type=float, default=0.5)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    prompt = tokenizer(sys.stdin.read(), verbose=False).input_ids[: options.prompt_tokens]
    answer = ask(options.url, prompt)
    said = [token for token, _ in answer]
    expected = judge(options.folder, options.dtype, prompt, said)
    differences = [
        abs(float(row[token]) - got) for row, (token, got) in zip(expected, answer, strict=True)
    ]
    same = sum(int(row.argmax()) == token for row, token in zip(expected, said, strict=True))
    worst = max(differences, key=lambda one: math.inf if math.isnan(one) else one)
    print(
        f"after {len(prompt):,} tokens: {same} of {len(said)} tokens are transformers', "
        f"log-probabilities differ by up to {worst:.2g} (tolerance {options.tolerance:g})"
    )
    if not worst <= options.tolerance:  # NaN is none
        sys.exit(
            "the server computes another model: does it read the rope block (convert inspect)?"
        )


if __name__ == "__main__":
    main()
