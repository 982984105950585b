"""What a pickle in a checkpoint may name: plain data classes, tensors, and nothing that acts."""

import re

METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    # Megatron-Core leaves its plan of the saving there too.
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
}
"""Plain data classes, and what their fields hold."""

RECORD_CLASSES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "io.BytesIO",
    "signal.Signals",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "megatron.core.enums.ModelType",
    "megatron.core.optimizer.optimizer_config.OptimizerConfig",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.CudaGraphModule",
    "megatron.core.transformer.enums.CudaGraphScope",
    "megatron.core.transformer.enums.InferenceCudaGraphScope",
)
"""What Megatron-LM 0.16 to 0.19 keeps besides tensors: its arguments and the states of random
generators: what ``megatron.core.safe_globals`` names. These classes are looked up."""
MEGATRON_CLASS = re.compile(r"megatron\.core(\.[a-z0-9_]+)+\.[A-Z][A-Za-z0-9]*")
"""Classes of Megatron-Core. One that is not in the list, or not in this release, is not looked up:
an object that does nothing stands for its values."""


def is_record_class(name: str) -> bool:
    """Whether records of objects may name this class."""
    return name in RECORD_CLASSES or MEGATRON_CLASS.fullmatch(name) is not None


TORCH_NAMES = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.serialization._get_layout",
    "torch.storage.UntypedStorage",
    "_codecs.encode",
}
"""Of what torch allows by itself: enough for tensors. ``bytearray`` and ``Tensor`` take memory by
a number in the file alone."""
EXTRA_STATE_CLASSES = {
    *(("builtins", name) for name in ("dict", "list", "tuple", "int", "float", "bool", "bytes")),
    ("builtins", "str"),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "_load_from_bytes"),
    ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"),
    ("megatron.core.safe_globals", "safe_load_from_bytes"),
}
"""What Transformer Engine pickles into an FP8 layer's ``_extra_state``, besides its recipes."""
RECIPES = "transformer_engine.common.recipe"
CLASS_NAME = re.compile(r"_?[A-Z][A-Za-z0-9]*")
"""A class of that module, and nothing that is reached through it: no ``os.system``."""
