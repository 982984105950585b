"""Instead of ``vllm serve``, with the flags that step 8 uses: transformers."""

from __future__ import annotations

import argparse
import http.server
import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load the folder, answer /health and /v1/completions."""
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--kv-cache-memory-bytes", type=int, required=True)
    parser.add_argument("--enable-chunked-prefill", action="store_true")
    parser.add_argument("--max-num-batched-tokens", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    model.eval()
    positions = model.config.max_position_embeddings
    if options.max_model_len > positions:
        parser.error(
            f"--max-model-len {options.max_model_len} is beyond the {positions} positions of "
            f"{options.model}"
        )

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["model"] == options.served_model_name
            ids = asked["prompt"]
            if isinstance(ids, str):
                ids = tokenizer(ids).input_ids
            with torch.no_grad():
                done = model.generate(
                    torch.tensor([ids]), max_new_tokens=asked["max_tokens"], do_sample=False,
                    output_logits=True, return_dict_in_generate=True,
                )  # fmt: skip
            new = done.sequences[0, len(ids) :].tolist()
            rows = [torch.log_softmax(row[0].double(), dim=-1) for row in done.logits]
            log_probs = {
                "tokens": [f"token_id:{token}" for token in new],
                "token_logprobs": [float(row[token]) for row, token in zip(rows, new, strict=True)],
            }
            choice = {"index": 0, "text": tokenizer.decode(new), "logprobs": log_probs}
            self._send({"model": asked["model"], "choices": [choice]})

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http.server.HTTPServer(("127.0.0.1", options.port), Server).serve_forever()


if __name__ == "__main__":
    main()
