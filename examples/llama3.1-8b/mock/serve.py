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
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
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
            ids = tokenizer(asked["prompt"], return_tensors="pt").input_ids
            with torch.no_grad():
                new = model.generate(ids, max_new_tokens=asked["max_tokens"], do_sample=False)
            text = tokenizer.decode(new[0, ids.shape[1] :])
            self._send({"model": asked["model"], "choices": [{"index": 0, "text": text}]})

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
