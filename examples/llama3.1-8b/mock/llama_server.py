"""``llama-server`` with the flags that step 8 uses: llama.cpp itself, of the package xllamacpp."""

from __future__ import annotations

import argparse
import sys
import threading


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="llama-server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--cache-type-k", required=True)
    parser.add_argument("--cache-type-v", required=True)
    parser.add_argument("--flash-attn", choices=["on", "off"], required=True)
    options = parser.parse_args()
    try:
        import xllamacpp
    except ImportError:
        sys.exit("neither llama-server nor xllamacpp is installed: pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = options.model, {options.alias}
    params.port, params.n_ctx, params.n_parallel = options.port, options.ctx_size, options.parallel
    types = {"f32": xllamacpp.ggml_type.GGML_TYPE_F32, "f16": xllamacpp.ggml_type.GGML_TYPE_F16}
    params.cache_type_k, params.cache_type_v = (
        types[options.cache_type_k],
        types[options.cache_type_v],
    )
    kinds = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if options.flash_attn == "off"
        else kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED
    )
    server = xllamacpp.Server(params)
    print(f"llama.cpp (xllamacpp): {server.listening_address}", file=sys.stderr)
    threading.Event().wait()


if __name__ == "__main__":
    main()
