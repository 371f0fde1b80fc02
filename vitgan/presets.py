"""The presets: complete configurations to start from."""

from vitgan.config import Config, LossConfig, OptimiserConfig
from vitgan.models import DiscriminatorConfig, GeneratorConfig
from vitgan.training.augment import AugmentConfig

PRESETS: dict[str, Config] = {
    "tiny": Config(
        preset="tiny",
        generator=GeneratorConfig(
            patch_size=8,
            latent_dim=64,
            dim=64,
            depth=2,
            heads=2,
            mapping_depth=2,
            siren_dim=32,
            fourier_frequency=1.0,
        ),
        discriminator=DiscriminatorConfig(patch_size=8, dim=64, depth=2, heads=2, attention_scale=1 / 32),
        loss=LossConfig(kind="relativistic", bcr_real=0, bcr_fake=0, r1=0.5, r2=0.5, penalty_every=4),
        augment=AugmentConfig(translation=0, color=0, cutout=0, scaling=0),
        optimiser=OptimiserConfig(g_lr=8e-3, d_lr=8e-3, lr_decay=0.4),
        batch_size=16,
        images=80_000,
        max_minutes=4.6,
        threads=1,  # a second one gains little on tensors this small, and waits where another process has its core
        log_every=1600,
        sample_every=10_000,
        evaluate_every=20_000,
        checkpoint_every=20_000,
    ),
    "cifar10": Config(
        preset="cifar10",
        data="cifar10",
    ),
    "cifar10-hybrid": Config(
        preset="cifar10-hybrid",
        data="cifar10",
        discriminator_kind="stylegan2",
        # The paper gives no weight; this is the gamma of 0.01 that StyleGAN2-ADA has for CIFAR-10, halved.
        loss=LossConfig(r1=0.005),
    ),
    "celeba64": Config(
        preset="celeba64",
        data="celeba64",
        image_size=64,
        generator=GeneratorConfig(patch_size=8, depth=6),
        discriminator=DiscriminatorConfig(patch_size=8, depth=6),
    ),
    "lsun128": Config(
        preset="lsun128",
        data="lsun128",
        image_size=128,
        generator=GeneratorConfig(patch_size=8, depth=6),
        discriminator=DiscriminatorConfig(patch_size=8, depth=6),
    ),
    "vitgan-pytorch-cifar10": Config(
        preset="vitgan-pytorch-cifar10",
        data="cifar10",
        generator=GeneratorConfig(latent_dim=32, heads=4),
        discriminator=DiscriminatorConfig(heads=4),
        optimiser=OptimiserConfig(g_lr=1e-3, d_lr=1e-3),
    ),
}
