"""x"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    """Stage 2 on the embedded model, or a preset."""
    config = common.get_config()
    config.name = "stage2"
    config.parent = "configs/stage1.py"
    config.objective.alpha = 10.0
    return config
