"""Convert checkpoints: `ultralong convert`, under the name that Megatron users look for.

python tools/convert_checkpoint.py import|export|verify|inspect --help
"""

import sys

from megatron_ultralong.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
