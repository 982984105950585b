"""Mistral from 7B v0.2 on: Llama's layer under another name, where no window is set."""

from megatron_ultralong.model.families import family

MISTRAL = family.Family(
    name="mistral",
    title="Mistral",
    architecture="MistralForCausalLM",
    shape=family.common(131072, 1e-5, 1000000.0, 32768, kv_channels=128),
    models={
        "mistral-7b": family.sizes(32, 4096, 14336, 32, vocab_size=32768),
        "mistral-nemo-12b": family.sizes(40, 5120, 14336, 32, max_position_embeddings=131072),
        "mistral-small-24b": family.sizes(40, 5120, 32768, 32, rotary_base=1e8),
    },
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    stated={"sliding_window": None},
    turns=(
        family.Turns(
            "<s>",
            {"user": ("[INST]", " "), "assistant": ()},
            {"user": ("[/INST]",), "assistant": ("</s>",)},
            ("<s>", "[INST]", "[/INST]", "</s>"),
        ),
    ),
    stop_tokens=("</s>",),
)
