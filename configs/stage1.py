"""x"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    """Stage 1 on the embedded model, or a preset."""
    config = common.get_config()
    config.name = "stage1"
    return config
