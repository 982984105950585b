"""llama.cpp's converter, run on a folder whose tokenizer it need not know.

::

    python llama_cpp_convert.py SOURCE JOBS.json

SOURCE is llama.cpp's; a job is ``[folder, output, attn_factor]``. The converter refuses a
pre-tokenizer that it has not heard of; tokens go in and out by id here, so any will do.
``attn_factor``, unless null, is written as ``rope.scaling.attn_factor``, which ``--override-kv``
sets on llama-server's command line: xllamacpp has no such option.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Convert in float32."""
    source, jobs = sys.argv[1:]
    sys.path[:0] = [source, str(Path(source, "gguf-py"))]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
    state = TextModel.set_gguf_parameters
    for folder, output, attn_factor in json.loads(Path(jobs).read_text()):

        def stated(self, attn_factor=attn_factor):
            state(self)
            if attn_factor is not None:
                self.gguf_writer.add_rope_scaling_attn_factors(attn_factor)

        TextModel.set_gguf_parameters = stated
        sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", output, "--outtype", "f32"]
        convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
