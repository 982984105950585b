"""Runs in the environment of one engine: log-probabilities of given tokens after given prompts.

::

    python logits_probe.py ENGINE JOBS.json OUTPUT.json

``JOBS.json`` is a list of ``{"model", "prompt", "continuation", "flags"}``, tokens by id. For each
token of the continuation, which is given to the engine as far as it came before, ``OUTPUT.json``
has the engine's log-probability of it and whether the engine would have taken it, or the error.
``transformers`` also writes ``model``'s logits of these tokens to the path of ``"logits"``.
"""

import json
import sys
from pathlib import Path

MOST = 4096
"""Log-probabilities that a server is asked for."""


def main() -> None:
    """Ask the engine named for every job; an error in one does not keep the others from it."""
    engine, jobs, output = sys.argv[1:]
    found = []
    for job in json.loads(Path(jobs).read_text()):
        try:
            chosen, log_probabilities = ENGINES[engine](job)
            found.append({"greedy": chosen, "log_probabilities": log_probabilities})
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"[:500]})
    Path(output).write_text(json.dumps(found))


def of_transformers(job):
    """One forward pass in float32."""
    import numpy as np
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], torch_dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokens, first = _tokens(job)
    with torch.no_grad():
        hidden = model.model(torch.tensor([tokens]))[0][0, first - 1 : -1]
        logits = model.lm_head(hidden).float()
    if job.get("logits"):
        np.save(job["logits"], logits.numpy())
    return _of_logits(logits.numpy(), job)


def of_mlx(job):
    """One forward pass in float32, in pieces that its cache joins."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_map
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(job["model"]))
    model.update(tree_map(lambda p: p.astype(mx.float32), model.parameters()))
    tokens, first = _tokens(job)
    cache = make_prompt_cache(model)
    for start in range(0, first - 1, 512):
        model(mx.array(tokens[start : min(start + 512, first - 1)])[None], cache=cache)
        mx.eval([c.state for c in cache])
    logits = model(mx.array(tokens[first - 1 : -1])[None], cache=cache)[0]
    return _of_logits(np.array(logits.astype(mx.float32)), job)


def of_vllm(job):
    """``prompt_logprobs`` of prompt and continuation together."""
    from vllm import LLM, SamplingParams

    tokens, first = _tokens(job)
    engine = LLM(
        job["model"],
        dtype="float32",
        max_model_len=len(tokens) + 8,
        max_num_seqs=1,
        max_num_batched_tokens=2048,  # each of them has logits over the vocabulary
        enforce_eager=True,
        skip_tokenizer_init=True,
    )
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    (answer,) = engine.generate([{"prompt_token_ids": tokens}], sampling)
    told = [
        at[token] for at, token in zip(answer.prompt_logprobs[first:], tokens[first:], strict=True)
    ]
    return [each.rank == 1 for each in told], [each.logprob for each in told]


def of_llama_cpp(job):
    """A token at a time: the server tells log-probabilities of what it would say, not of a text."""
    import xllamacpp

    tokens, first = _tokens(job)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = job["model"]
    parameters.n_ctx = len(tokens) + 16
    parameters.n_parallel = 1
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.cpuparams.n_threads = 1  # threads that wait spin, and take the cores of others
    parameters.warmup = False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for name, value in job.get("flags", {}).items():
        setattr(parameters, name, value)
    server = xllamacpp.Server(parameters)
    greedy, log_probabilities = [], []
    for at in range(first, len(tokens)):
        answer = server.handle_completions(
            {
                "prompt": tokens[:at],
                "n_predict": 1,
                "temperature": 0,
                "n_probs": MOST,
                "cache_prompt": True,
            }
        )
        told = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        of_it = {each["id"]: each["logprob"] for each in told}
        greedy.append(told[0]["id"] == tokens[at])
        # not among them: less than the last
        log_probabilities.append(of_it.get(tokens[at], told[-1]["logprob"]))
    return greedy, log_probabilities


def _tokens(job):
    return job["prompt"] + job["continuation"], len(job["prompt"])


def _of_logits(logits, job):
    """Of logits [n, vocabulary], in float64."""
    import numpy as np

    logits = logits.astype(np.float64)
    greatest = logits.max(1, keepdims=True)
    normalised = logits - greatest - np.log(np.exp(logits - greatest).sum(1, keepdims=True))
    chosen = logits.argmax(1)
    wanted = np.array(job["continuation"])
    return (chosen == wanted).tolist(), normalised[np.arange(len(wanted)), wanted].tolist()


ENGINES = {
    "transformers": of_transformers,
    "vllm": of_vllm,
    "mlx-lm": of_mlx,
    "llama.cpp": of_llama_cpp,
}

if __name__ == "__main__":
    main()
