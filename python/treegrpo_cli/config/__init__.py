"""Every setting with its default and limit; files and overrides."""

from treegrpo_cli.config.settings import (
    AdvantageConfig,
    BudgetConfig,
    Config,
    DataConfig,
    EnvironmentConfig,
    LimitsConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    SamplerConfig,
    SelectionConfig,
    TrainConfig,
)

__all__ = [
    "AdvantageConfig",
    "BudgetConfig",
    "Config",
    "DataConfig",
    "EnvironmentConfig",
    "LimitsConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RewardConfig",
    "RolloutConfig",
    "SamplerConfig",
    "SelectionConfig",
    "TrainConfig",
]
